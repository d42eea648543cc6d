//! A request until it has its answer: who may ask, again when it fails, elsewhere when it is sent on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::{
    AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::runtime::Runtime;

use crate::challenge::Challenge;
use crate::config::{Config, Credentials, Endpoint};
use crate::error::{Error, Result};

/// How often a request is made before its failure is told.
const TRIES: u32 = 5;
/// How often an answer may send elsewhere.
const REDIRECTS: u32 = 5;
/// How long a registry may say nothing.
const STALL: Duration = Duration::from_secs(60);
/// Bytes of an error or a token that are read.
const MAX_ANSWER: usize = 1 << 20;

/// What is asked of a registry, in the words of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Pull,
    Push,
}

impl Access {
    fn actions(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

/// A body that can be sent again.
#[derive(Clone)]
pub(crate) enum Body {
    Empty,
    Bytes(Vec<u8>),
    /// Bytes of a file: from where, and how many.
    File(Arc<std::fs::File>, u64, u64),
}

/// A client of registries. Clones share their connections and tokens.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    runtime: Runtime,
    http: reqwest::Client,
    /// Without a look at certificates, for registries that are said to be insecure.
    careless: reqwest::Client,
    /// `Authorization` by host, repository and access.
    tokens: Mutex<HashMap<(String, String, Access), HeaderValue>>,
    /// Hosts that answer plain HTTP only.
    plain: Mutex<HashMap<String, bool>>,
    pause: Duration,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Client {
    /// A client with this configuration.
    ///
    /// # Errors
    /// Where this machine gives no threads, or TLS can't be set up.
    pub fn new(config: Config) -> Result<Self> {
        Self::with_pause(config, Duration::from_millis(500))
    }

    /// As [`Client::new`], with the pause before a second try, which doubles for each one more.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_pause(config: Config, pause: Duration) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let build = |careless| {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(Duration::from_secs(20))
                .read_timeout(STALL)
                .danger_accept_invalid_certs(careless)
                .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
                .no_proxy()
                .build()
                .map_err(|e| Error::Network { url: "TLS".to_owned(), why: e.to_string() })
        };
        let (http, careless) = (build(false)?, build(true)?);
        let (tokens, plain) = (Mutex::default(), Mutex::default());
        let stop = tokio::sync::watch::Sender::new(false);
        Ok(Self {
            inner: Arc::new(Inner { config, runtime, http, careless, tokens, plain, pause, stop }),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Ends every request, those to come too, with [`Error::Stopped`].
    pub fn stop(&self) {
        self.inner.stop.send_replace(true);
    }

    /// Waits for something of the network, unless [`Client::stop`] ends that.
    pub(crate) fn wait<T>(&self, for_: impl Future<Output = T>) -> Result<T> {
        let mut stopped = self.inner.stop.subscribe();
        self.inner.runtime.block_on(async {
            tokio::select! {
                // Not only where both are ready.
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => Err(Error::Stopped),
                done = for_ => Ok(done),
            }
        })
    }

    /// Asks, and waits for the head of an answer that is a success. `path` is behind `/v2/REPOSITORY/`,
    /// or a whole address that the registry gave.
    pub(crate) fn ask(
        &self,
        at: &Endpoint,
        access: Access,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Body,
    ) -> Result<Response> {
        self.wait(self.inner.ask(at, access, method, path, headers, body))?
    }
}

impl Inner {
    async fn ask(
        &self,
        at: &Endpoint,
        access: Access,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Body,
    ) -> Result<Response> {
        let mut pause = self.pause;
        let mut try_ = 1;
        loop {
            let done = self.once(at, access, method, path, headers, body).await;
            let (wait, retry) = match &done {
                Err(Error::Network { .. }) => (None, true),
                Ok(response) => (retry_after(response), again(response.status())),
                Err(_) => (None, false),
            };
            if !retry || try_ == TRIES {
                return match done {
                    Ok(response) => self.judge(at, path, response).await,
                    Err(e) => Err(e),
                };
            }
            try_ += 1;
            tracing::debug!(host = at.host, path, try_, "once more");
            tokio::time::sleep(wait.unwrap_or(pause).min(Duration::from_secs(60))).await;
            pause *= 2;
        }
    }

    /// One try, with what it takes to be let in and every way that it is sent on.
    async fn once(
        &self,
        at: &Endpoint,
        access: Access,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Body,
    ) -> Result<Response> {
        let key = (at.host.clone(), at.repository.clone(), access);
        let known = self.tokens.lock().ok().and_then(|tokens| tokens.get(&key).cloned());
        let response = self.send(at, method, path, headers, body, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // No token yet, or one that has run out.
        let Some(token) = self.authorize(at, access, response.headers()).await? else {
            return Ok(response);
        };
        if let Ok(mut tokens) = self.tokens.lock() {
            tokens.insert(key, token.clone());
        }
        self.send(at, method, path, headers, body, Some(&token)).await
    }

    async fn send(
        &self,
        at: &Endpoint,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Body,
        token: Option<&HeaderValue>,
    ) -> Result<Response> {
        if path.contains("://") {
            let url = url(path)?;
            return self.follow(at, method, url, headers, body, token).await;
        }
        let rest =
            if path.is_empty() { String::new() } else { format!("{}/{path}", at.repository) };
        let address = |scheme: &str| url(&format!("{scheme}://{}/v2/{rest}", at.host));
        let loopback = is_loopback(&at.host);
        let plain = self.plain.lock().ok().and_then(|plain| plain.get(&at.host).copied());
        if plain != Some(true) {
            let done = self.follow(at, method, address("https")?, headers, body, token).await;
            match done {
                // Plain HTTP only where it was allowed, or nobody else can listen.
                Err(Error::Network { .. }) if plain.is_none() && (at.insecure || loopback) => {}
                done => return done,
            }
        }
        let done = self.follow(at, method, address("http")?, headers, body, token).await;
        if done.is_ok()
            && let Ok(mut plain) = self.plain.lock()
        {
            plain.insert(at.host.clone(), true);
        }
        done
    }

    async fn follow(
        &self,
        at: &Endpoint,
        method: &Method,
        mut url: Url,
        headers: &HeaderMap,
        body: &Body,
        token: Option<&HeaderValue>,
    ) -> Result<Response> {
        let origin = url.origin();
        for _ in 0..=REDIRECTS {
            let http = if at.insecure { &self.careless } else { &self.http };
            let mut request = http.request(method.clone(), url.clone()).headers(headers.clone());
            // Who asks is the registry's business, and of nobody whom it sends to.
            if let Some(token) = token.filter(|_| url.origin() == origin || self.is_of(at, &url)) {
                request = request.header(AUTHORIZATION, token.clone());
            }
            request = match body {
                Body::Empty => request,
                Body::Bytes(bytes) => request.body(bytes.clone()),
                Body::File(file, from, length) => {
                    let bytes = part(file, *from, *length);
                    request.header("content-length", *length).body(bytes)
                }
            };
            let response = request.send().await.map_err(|e| network(&url, &e))?;
            let moved =
                response.status().is_redirection() && matches!(*method, Method::GET | Method::HEAD);
            let Some(to) = response.headers().get(LOCATION).filter(|_| moved) else {
                return Ok(response);
            };
            let next = to.to_str().ok().and_then(|to| url.join(to).ok());
            let next = next.ok_or_else(|| nonsense(&url, "it sends on to nowhere"))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(nonsense(&url, "it sends on from HTTPS to plain HTTP"));
            }
            url = next;
        }
        Err(nonsense(&url, "it is sent on without end"))
    }

    /// Whether an address is the registry's own.
    fn is_of(&self, at: &Endpoint, url: &Url) -> bool {
        let port = url.port().map_or(String::new(), |port| format!(":{port}"));
        format!("{}{port}", url.host_str().unwrap_or("")) == at.host
    }

    /// What to answer a challenge with; none where there is nothing to answer.
    async fn authorize(
        &self,
        at: &Endpoint,
        access: Access,
        headers: &HeaderMap,
    ) -> Result<Option<HeaderValue>> {
        let name = if at.host == "registry-1.docker.io" { "docker.io" } else { &at.host };
        let credentials = self.config.credentials(name, &at.repository)?;
        for challenge in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(challenge) = challenge.to_str() else { continue };
            match Challenge::parse(challenge) {
                Some(Challenge::Basic) => {
                    let Some(credentials) = &credentials else { continue };
                    return Ok(Some(secret(&format!("Basic {}", encoded(credentials)))?));
                }
                Some(Challenge::Bearer { realm, service, scope }) => {
                    let actions = access.actions();
                    let scope = scope
                        .filter(|scope| !scope.is_empty())
                        .unwrap_or_else(|| format!("repository:{}:{actions}", at.repository));
                    let token = self
                        .token(at, &realm, service.as_deref(), &scope, credentials.as_ref())
                        .await?;
                    return Ok(Some(secret(&format!("Bearer {token}"))?));
                }
                None => {}
            }
        }
        Ok(None)
    }

    async fn token(
        &self,
        at: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credentials: Option<&Credentials>,
    ) -> Result<String> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let mut url = url(realm)?;
        let local = url.host_str().is_some_and(is_loopback);
        if url.scheme() != "https" && !at.insecure && !local {
            return Err(nonsense(&url, "it wants a login over plain HTTP"));
        }
        url.query_pairs_mut().extend_pairs(service.map(|service| ("service", service)));
        let http = if at.insecure { &self.careless } else { &self.http };
        let identity = credentials.filter(|credentials| credentials.username == "<token>");
        let request = if let Some(identity) = identity {
            let form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", &identity.password),
                ("service", service.unwrap_or("")),
                ("scope", scope),
            ];
            let mut body = Url::parse("form:").map_err(|e| nonsense(&url, &e.to_string()))?;
            body.query_pairs_mut().extend_pairs(form);
            let body = body.query().unwrap_or("").to_owned();
            http.post(url.clone())
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body)
        } else {
            // A mount asks for two repositories at once.
            let scopes = scope.split(' ').map(|one| ("scope", one));
            url.query_pairs_mut().extend_pairs(scopes);
            let request = http.get(url.clone());
            match credentials {
                Some(c) => request.header(AUTHORIZATION, secret(&format!("Basic {}", encoded(c)))?),
                None => request,
            }
        };
        let response = request.send().await.map_err(|e| network(&url, &e))?;
        if !response.status().is_success() {
            return Err(Error::Denied {
                registry: at.host.clone(),
                repository: at.repository.clone(),
            });
        }
        let bytes = limited(response, MAX_ANSWER).await?;
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|e| nonsense(&url, &e.to_string()))?;
        answer.token.or(answer.access_token).ok_or_else(|| nonsense(&url, "it gives no token"))
    }

    /// An answer that is a success, or what is wrong.
    async fn judge(&self, at: &Endpoint, path: &str, response: Response) -> Result<Response> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let (registry, repository) = (at.host.clone(), at.repository.clone());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::Denied { registry, repository })
            }
            StatusCode::NOT_FOUND => {
                Err(Error::NotFound { registry, what: format!("{repository} {path}") })
            }
            status => {
                let url = response.url().to_string();
                let body = limited(response, 4096).await.unwrap_or_default();
                let body = String::from_utf8_lossy(&body).chars().take(300).collect();
                Err(Error::Status { url, status: status.as_u16(), body })
            }
        }
    }
}

/// All of an answer, or an error where it is longer than `limit`.
pub(crate) async fn limited(mut response: Response, limit: usize) -> Result<Vec<u8>> {
    let url = response.url().clone();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| network(&url, &e))? {
        if bytes.len() + chunk.len() > limit {
            return Err(nonsense(&url, &format!("its answer is longer than {limit} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn again(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || status.is_server_error()
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

pub(crate) fn network(url: &Url, error: &reqwest::Error) -> Error {
    // The innermost reason says most.
    let mut why = error.to_string();
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        why = source.to_string();
        inner = source;
    }
    Error::Network { url: shown(url), why }
}

/// An address without what may be secret in it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

pub(crate) fn nonsense(url: &Url, why: &str) -> Error {
    Error::Nonsense { url: shown(url), why: why.to_owned() }
}

pub(crate) fn url(text: &str) -> Result<Url> {
    Url::parse(text)
        .map_err(|e| Error::Nonsense { url: text.chars().take(200).collect(), why: e.to_string() })
}

fn secret(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Error::Nonsense {
        url: "a login".to_owned(),
        why: "it has letters that none can have".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn encoded(credentials: &Credentials) -> String {
    use base64::Engine as _;
    let text = format!("{}:{}", credentials.username, credentials.password);
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host }
    });
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A part of a file as a body, in pieces. Read where the file is, whatever its cursor says: two parts may be sent at once.
fn part(file: &Arc<std::fs::File>, from: u64, length: u64) -> reqwest::Body {
    use std::os::unix::fs::FileExt as _;
    const PIECE: u64 = 256 << 10;
    let file = Arc::clone(file);
    let pieces = (0..length.div_ceil(PIECE)).map(move |number| {
        let at = number * PIECE;
        let mut piece = vec![0; usize::try_from(PIECE.min(length - at)).unwrap_or(0)];
        file.read_exact_at(&mut piece, from + at).map(|()| piece)
    });
    reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_what_only_this_machine_reaches() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.1.2.3", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "128.0.0.1", "example", "[::2]:1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
