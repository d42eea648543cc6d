//! What is counted, in the text that Prometheus reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Response, Status};

use crate::unions::Unions;

/// Upper ends of the classes of how long calls took, in seconds.
const CLASSES: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0];

#[derive(Debug, Default)]
struct Call {
    count: u64,
    seconds: f64,
    classes: [u64; CLASSES.len()],
    errors: BTreeMap<&'static str, u64>,
}

/// Counters of one snapshotter, since it started.
#[derive(Debug, Default)]
pub struct Metrics {
    calls: Mutex<BTreeMap<&'static str, Call>>,
    /// Bytes of blobs that were read and unpacked.
    pub(crate) bytes: AtomicU64,
    /// Layers that were unpacked.
    pub(crate) unpacked: AtomicU64,
    /// Layers that were there already.
    pub(crate) known: AtomicU64,
    /// Mounts that were handed out: by overlayfs, bind mounts among them; by the union.
    pub(crate) kernel: AtomicU64,
    pub(crate) union: AtomicU64,
    pub(crate) unions: Unions,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// The name of a code that calls end with; those that only say what is there are no errors.
fn failure(status: &Status) -> Option<&'static str> {
    use tonic::Code;
    match status.code() {
        Code::NotFound | Code::AlreadyExists | Code::Unimplemented => None,
        Code::InvalidArgument => Some("invalid_argument"),
        Code::FailedPrecondition => Some("failed_precondition"),
        Code::Unavailable => Some("unavailable"),
        Code::DataLoss => Some("data_loss"),
        _ => Some("internal"),
    }
}

impl Metrics {
    /// Counts a call, and logs how it ended.
    pub(crate) async fn of<T>(
        &self,
        name: &'static str,
        key: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        let begun = Instant::now();
        let done = call.await;
        let took = begun.elapsed();
        let failed = done.as_ref().err().and_then(failure);
        self.note(name, took, failed);
        let millis = took.as_millis() as u64;
        match &done {
            Ok(_) => tracing::debug!(call = name, key, millis, "done"),
            Err(e) if failed.is_none() => {
                tracing::debug!(call = name, key, millis, code = ?e.code(), "done");
            }
            Err(e) => {
                tracing::warn!(call = name, key, millis, code = ?e.code(), error = e.message(), "failed");
            }
        }
        done
    }

    fn note(&self, name: &'static str, took: Duration, failed: Option<&'static str>) {
        let mut calls = self.calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let call = calls.entry(name).or_default();
        call.count += 1;
        call.seconds += took.as_secs_f64();
        for (class, end) in call.classes.iter_mut().zip(CLASSES) {
            *class += u64::from(took.as_secs_f64() <= end);
        }
        if let Some(code) = failed {
            *call.errors.entry(code).or_default() += 1;
        }
    }

    /// All of them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.written(&mut text).is_err() {
            tracing::debug!("a string takes everything");
        }
        text
    }

    fn written(&self, to: &mut String) -> std::fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (unions, live) = self.unions.sum();
        let simple = [
            ("copy_ups_total", "Files and directories that unions copied up.", unions.copy_ups),
            (
                "copy_up_bytes_total",
                "Bytes of these files that were copied with them.",
                unions.copied_bytes,
            ),
            (
                "limit_hits_total",
                "Requests that unions refused at the limit of a snapshot.",
                unions.refused,
            ),
            ("layers_unpacked_total", "Layers that were unpacked.", get(&self.unpacked)),
            ("layers_known_total", "Layers that were there already.", get(&self.known)),
            ("blob_bytes_total", "Bytes of blobs that were read and unpacked.", get(&self.bytes)),
        ];
        for (name, help, value) in simple {
            writeln!(to, "# HELP strata_{name} {help}\n# TYPE strata_{name} counter")?;
            writeln!(to, "strata_{name} {value}")?;
        }
        writeln!(to, "# HELP strata_mounts_total Mounts that were handed out.")?;
        writeln!(to, "# TYPE strata_mounts_total counter")?;
        writeln!(to, "strata_mounts_total{{by=\"kernel\"}} {}", get(&self.kernel))?;
        writeln!(to, "strata_mounts_total{{by=\"union\"}} {}", get(&self.union))?;
        writeln!(to, "# HELP strata_unions Snapshots that are shown by the union.")?;
        writeln!(to, "# TYPE strata_unions gauge\nstrata_unions {live}")?;
        let calls = self.calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        writeln!(to, "# HELP strata_call_errors_total Calls that failed.")?;
        writeln!(to, "# TYPE strata_call_errors_total counter")?;
        for (name, call) in calls.iter() {
            for (code, count) in &call.errors {
                let labels = format!("call=\"{name}\",code=\"{code}\"");
                writeln!(to, "strata_call_errors_total{{{labels}}} {count}")?;
            }
        }
        writeln!(to, "# HELP strata_call_seconds How long calls took.")?;
        writeln!(to, "# TYPE strata_call_seconds histogram")?;
        for (name, call) in calls.iter() {
            for (class, end) in call.classes.iter().zip(CLASSES) {
                writeln!(to, "strata_call_seconds_bucket{{call=\"{name}\",le=\"{end}\"}} {class}")?;
            }
            let count = call.count;
            writeln!(to, "strata_call_seconds_bucket{{call=\"{name}\",le=\"+Inf\"}} {count}")?;
            writeln!(to, "strata_call_seconds_sum{{call=\"{name}\"}} {:.6}", call.seconds)?;
            writeln!(to, "strata_call_seconds_count{{call=\"{name}\"}} {count}")?;
        }
        Ok(())
    }

    /// Answers one request over HTTP, whatever it asks for.
    ///
    /// # Errors
    /// Of the connection; a request of more than 8 KiB.
    pub async fn answer(
        self: Arc<Self>,
        mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut chunk = [0; 1024];
            let got = stream.read(&mut chunk).await?;
            request.extend_from_slice(&chunk[..got]);
            if got == 0 || request.len() > 8 << 10 {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
        }
        let (code, body) = if request.starts_with(b"GET /metrics ") {
            // Counters are in files, for which this thread is not to wait.
            let text = tokio::task::spawn_blocking(move || self.text()).await;
            ("200 OK", text.map_err(std::io::Error::other)?)
        } else if request.starts_with(b"GET /healthz ") {
            ("200 OK", "ok\n".to_owned())
        } else {
            ("404 Not Found", "there are /metrics and /healthz\n".to_owned())
        };
        let head = format!(
            "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_are_counted_and_shown() {
        let metrics = Arc::new(Metrics::default());
        let ok = async { Ok(Response::new(())) };
        metrics.of("prepare", "k", ok).await.unwrap();
        let absent = async { Err::<Response<()>, _>(Status::not_found("no")) };
        metrics.of("stat", "k", absent).await.unwrap_err();
        let broken = async { Err::<Response<()>, _>(Status::internal("disk")) };
        metrics.of("stat", "k", broken).await.unwrap_err();
        count(&metrics.union, 2);
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        theirs.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        metrics.answer(ours).await.unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        for line in [
            "strata_call_seconds_count{call=\"stat\"} 2",
            "strata_call_errors_total{call=\"stat\",code=\"internal\"} 1",
            "strata_call_seconds_bucket{call=\"prepare\",le=\"+Inf\"} 1",
            "strata_mounts_total{by=\"union\"} 2",
            "strata_copy_ups_total 0",
            "strata_unions 0",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} is not in {text}");
        }
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
    }
}
