//! `/healthz`, `/readyz` and `/metrics` in the plainest HTTP: one request a connection, off unless asked for.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::board::{Board, Seen};
use super::worker::Stats;
use crate::error::{Context, ErrorKind, Result};

/// A request comes within this time, and is no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST: usize = 4096;

/// Takes the address.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let failed = format!("--listen {address}: the address cannot be used");
    TcpListener::bind(address).await.context(ErrorKind::Usage, failed)
}

/// Answers until the process ends.
pub(super) async fn answer_all(listener: TcpListener, board: Board) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let board = board.clone();
                tokio::spawn(async move { tokio::time::timeout(PATIENCE, answer(stream, board)).await });
            }
            // Out of file descriptors, say: it passes.
            Err(_) => tokio::time::sleep(PATIENCE).await,
        }
    }
}

async fn answer(mut stream: TcpStream, board: Board) -> std::io::Result<()> {
    let mut request = Vec::with_capacity(LONGEST);
    // It may come in pieces; answered before its end, the client would see a reset instead of the answer.
    while !request.ends_with(b"\r\n\r\n") && request.len() < LONGEST {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(&request);
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match (method, path.split('?').next().unwrap_or_default()) {
        ("GET", "/healthz") => ("200 OK", "ok\n".to_string()),
        ("GET", "/readyz") => ready(&board),
        ("GET", "/metrics") => ("200 OK", metrics(&board)),
        ("GET", _) => ("404 Not Found", "there are /healthz, /readyz and /metrics\n".to_string()),
        _ => ("405 Method Not Allowed", "only GET\n".to_string()),
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Ready while no pipeline stands still because of a failure; the body names those that do.
fn ready(board: &Board) -> (&'static str, String) {
    let pipelines = board.pipelines();
    let failed = pipelines.iter().filter(|seen| seen.now().last_error.is_some());
    let failed = failed.map(|seen| format!("{}: {}\n", seen.name, seen.state));
    let broken = board.broken_files().into_iter().map(|file| format!("{file}: cannot be used\n"));
    let text: String = failed.chain(broken).collect();
    match text.is_empty() {
        true => ("200 OK", "ok\n".to_string()),
        false => ("503 Service Unavailable", text),
    }
}

/// Families of metrics with one line a pipeline.
struct Families {
    pipelines: Vec<(Seen, Stats)>,
    text: String,
}

impl Families {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP tidegate_{name} {help}\n# TYPE tidegate_{name} {kind}");
    }

    fn lines(&mut self, name: &str, value: impl Fn(&Seen, &Stats) -> Option<f64>) {
        for (seen, stats) in &self.pipelines {
            if let Some(value) = value(seen, stats) {
                let _ = writeln!(self.text, "tidegate_{name}{{pipeline=\"{}\"}} {value}", seen.name);
            }
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Fn(&Seen, &Stats) -> u64) {
        self.head(name, "counter", help);
        self.lines(name, |seen, stats| Some(value(seen, stats) as f64));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Fn(&Seen, &Stats) -> Option<f64>) {
        self.head(name, "gauge", help);
        self.lines(name, value);
    }
}

/// Prometheus' text form.
fn metrics(board: &Board) -> String {
    let pipelines = board.pipelines().into_iter().map(|seen| (seen.clone(), seen.now())).collect();
    let mut families = Families { pipelines, text: String::new() };
    families.counter("batches_total", "Batches finished.", |_, stats| stats.batches);
    families.counter("input_rows_total", "Rows read.", |_, stats| stats.rows);
    families.counter("dlq_rows_total", "Rows set aside as dead letters.", |_, stats| stats.dead_letters);
    families.head("batch_duration_seconds", "summary", "Time spent in batches.");
    families.lines("batch_duration_seconds_sum", |_, stats| Some(stats.seconds));
    families.lines("batch_duration_seconds_count", |_, stats| Some(stats.batches as f64));
    families.gauge("consumer_lag_records", "Offsets left when the source was last looked at.", |_, stats| {
        Some(stats.lag as f64)
    });
    families.gauge("last_success_timestamp_seconds", "End of the last run without a failure.", |_, stats| {
        stats.last_success.map(|time| time.timestamp_millis() as f64 / 1000.0)
    });
    families.counter("runs_total", "Runs started.", |seen, _| seen.runs);
    families.counter("failures_total", "Runs that failed.", |_, stats| stats.failures);
    families.counter("missed_ticks_total", "Ticks that passed during a run.", |seen, _| seen.missed);
    families
        .gauge("up", "1 unless the last run failed.", |_, stats| Some(f64::from(u8::from(stats.last_error.is_none()))));
    let broken = board.broken_files().len();
    families.head("broken_files", "gauge", "Pipeline files that cannot be used as they are now.");
    let _ = writeln!(families.text, "tidegate_broken_files {broken}");
    families.head("build_info", "gauge", "The version that runs.");
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(families.text, "tidegate_build_info{{version=\"{version}\"}} 1");
    families.text
}
