//! Registries that fail, stall, lie or send elsewhere, each made of a few lines here.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use registry::pull::RegistryImage;
use registry::{Client, Config};
use store::manifest::Descriptor;
use store::{BlobSource, Digest, Reference};

#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

/// An answer: its status, its headers, its body, and how much of that is sent before the end.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

fn answer(status: u16, body: &[u8]) -> Answer {
    Answer { status, headers: Vec::new(), body: body.to_vec(), cut: None }
}

impl Answer {
    fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((key, value.into()));
        self
    }
}

/// A server on this machine for as long as the process lives; what it was asked is kept.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn new(respond: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (kept, respond) = (Arc::clone(&asked), Arc::new(respond));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, respond) = (Arc::clone(&kept), Arc::clone(&respond));
                std::thread::spawn(move || serve(stream, &kept, &*respond));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    fn image(&self, rest: &str) -> RegistryImage {
        let reference: Reference = format!("{}/{rest}", self.address).parse().unwrap();
        RegistryImage::new(&client(Config::default()), &reference).unwrap()
    }
}

fn serve(
    mut stream: TcpStream,
    kept: &Mutex<Vec<Request>>,
    respond: &dyn Fn(&Request, usize) -> Answer,
) {
    let Ok(clone) = stream.try_clone() else { return };
    let mut reader = BufReader::new(clone);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let mut words = line.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    if !method.bytes().all(|b| b.is_ascii_uppercase()) {
        // A TLS greeting: this is plain HTTP.
        return;
    }
    let (method, path) = (method.to_owned(), path.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':') {
            headers.insert(key.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    let request = Request { method, path, headers };
    let count = {
        let mut kept = kept.lock().unwrap();
        kept.push(request.clone());
        kept.len()
    };
    let answer = respond(&request, count);
    let mut head = format!(
        "HTTP/1.1 {} X\r\ncontent-length: {}\r\nconnection: close\r\n",
        answer.status,
        answer.body.len()
    );
    for (key, value) in &answer.headers {
        head += &format!("{key}: {value}\r\n");
    }
    head += "\r\n";
    let sent = answer.cut.unwrap_or(answer.body.len());
    // The client may have heard enough.
    let done =
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&answer.body[..sent]));
    drop(done);
}

fn client(config: Config) -> Client {
    Client::with_pause(config, Duration::from_millis(1)).unwrap()
}

fn blob(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        platform: None,
        annotations: Default::default(),
    }
}

fn read(image: &RegistryImage, blob: &Descriptor, from: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut body = image.blob(blob, from).map_err(|e| e.to_string())?;
    body.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn a_registry_that_is_busy_is_asked_again_and_not_for_ever() {
    let server = Server::new(|_, count| match count {
        1 => answer(429, b"").with("retry-after", "0"),
        2 => answer(503, b""),
        _ => answer(200, b"{}").with("content-type", MANIFEST),
    });
    assert_eq!(server.image("a:1").manifest().unwrap().0, b"{}");
    assert_eq!(server.asked().len(), 3);
    let server = Server::new(|_, _| answer(500, b"down"));
    let error = server.image("a:1").manifest().unwrap_err().to_string();
    assert!(error.contains("500") && error.contains("down"), "{error}");
    assert_eq!(server.asked().len(), 5);
    let server = Server::new(|_, _| answer(404, b""));
    assert!(server.image("a:1").manifest().is_err());
    assert_eq!(server.asked().len(), 1, "what is not there is not there");
}

#[test]
fn a_blob_that_breaks_off_goes_on_from_there() {
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    let content = bytes.clone();
    let server = Server::new(move |request, count| {
        let from = request.headers.get("range").map_or(0, |range| {
            range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
        });
        let status = if from > 0 { 206 } else { 200 };
        let cut = (count < 4).then_some(30_000);
        Answer { cut, ..answer(status, &content[from..]) }
    });
    let image = server.image("a:1");
    assert_eq!(read(&image, &blob(&bytes), 0).unwrap(), bytes);
    let ranges: Vec<Option<String>> =
        server.asked().iter().map(|r| r.headers.get("range").cloned()).collect();
    assert_eq!(ranges[1].as_deref(), Some("bytes=30000-"));
    assert_eq!(ranges.len(), 4);
}

#[test]
fn a_registry_without_ranges_is_read_up_to_there() {
    let bytes = b"0123456789".to_vec();
    let server = Server::new(move |_, _| answer(200, b"0123456789"));
    assert_eq!(read(&server.image("a:1"), &blob(&bytes), 4).unwrap(), b"456789");
}

#[test]
fn a_blob_that_never_comes_whole_is_an_error() {
    let bytes = vec![7; 1000];
    let server = Server::new(|_, _| Answer { cut: Some(10), ..answer(200, &[7; 1000]) });
    let error = read(&server.image("a:1"), &blob(&bytes), 0).unwrap_err();
    assert!(error.contains("127.0.0.1"), "{error}");
}

#[test]
fn a_login_goes_to_the_registry_and_nowhere_else() {
    let elsewhere = Server::new(|_, _| answer(200, b"blob"));
    let away = elsewhere.address;
    let server = Server::new(move |request, _| {
        let token = request.headers.get("authorization");
        if request.path.starts_with("/token") {
            let basic = token.is_some_and(|token| token == "Basic dTpw");
            let scope = request.path.contains("scope=repository%3Aa%3Apull");
            return if basic && scope {
                answer(200, br#"{"token":"T"}"#)
            } else {
                answer(401, b"")
            };
        }
        if token.is_none_or(|token| token != "Bearer T") {
            let realm =
                format!(r#"Bearer realm="http://{}/token",service="s""#, request.headers["host"]);
            return answer(401, b"").with("www-authenticate", realm);
        }
        if request.path.contains("blobs") {
            return answer(307, b"").with("location", format!("http://{away}/elsewhere"));
        }
        answer(200, b"{}").with("content-type", MANIFEST)
    });
    let dir = tempfile::tempdir().unwrap();
    let auth = dir.path().join("auth.json");
    std::fs::write(&auth, format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, server.address))
        .unwrap();
    let client = client(Config { auth_files: vec![auth], ..Config::default() });
    let reference: Reference = format!("{}/a:1", server.address).parse().unwrap();
    let image = RegistryImage::new(&client, &reference).unwrap();
    image.manifest().unwrap();
    assert_eq!(read(&image, &blob(b"blob"), 0).unwrap(), b"blob");
    let away = elsewhere.asked();
    assert_eq!(away.len(), 1);
    assert_eq!(away[0].headers.get("authorization"), None, "the token was given away");
    // One token serves them all.
    assert_eq!(
        server.asked().iter().filter(|request| request.path.starts_with("/token")).count(),
        1
    );
    assert!(server.asked().iter().all(|request| request.method == "GET"));
}

#[test]
fn without_a_login_the_error_says_so() {
    let server = Server::new(|request, _| {
        if request.path.starts_with("/token") {
            return answer(403, b"");
        }
        let realm = format!(r#"Bearer realm="http://{}/token""#, request.headers["host"]);
        answer(401, b"").with("www-authenticate", realm)
    });
    let error = server.image("secret:1").manifest().unwrap_err().to_string();
    assert!(error.contains("log in") && error.contains("secret"), "{error}");
}

#[test]
fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    let server = Server::new(|_, _| answer(200, b"{}").with("content-type", MANIFEST));
    let other = Digest::of(b"other");
    let error = server.image(&format!("a@{other}")).manifest().unwrap_err().to_string();
    assert!(error.contains("other content"), "{error}");
    let server =
        Server::new(|_, _| answer(200, &vec![b' '; 5 << 20]).with("content-type", MANIFEST));
    let error = server.image("a:1").manifest().unwrap_err().to_string();
    assert!(error.contains("longer than"), "{error}");
    let server = Server::new(|request, _| answer(302, b"").with("location", request.path.clone()));
    let error = server.image("a:1").manifest().unwrap_err().to_string();
    assert!(error.contains("without end"), "{error}");
}
