//! A TCP proxy between tidegate and a broker, for networks that are slow or hang.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Read at once from the broker; small, so that a throttled stream trickles.
const CHUNK: usize = 16 * 1024;

/// How the network is at the moment. Zero everywhere is a good one.
#[derive(Default)]
struct Weather {
    /// Milliseconds before each piece of an answer.
    delay: AtomicU64,
    /// Bytes of answers per second and connection; 0 = as fast as it goes.
    rate: AtomicU64,
    /// Nothing gets through, and nobody is told.
    is_stalled: AtomicBool,
    /// Bytes of answers so far.
    passed: AtomicU64,
    is_over: AtomicBool,
}

/// Listens on a port until it is dropped.
pub struct Proxy {
    port: u16,
    weather: Arc<Weather>,
}

impl Proxy {
    /// Leads from `port` to `backend`, both on this machine.
    pub fn start(port: u16, backend: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let weather = Arc::new(Weather::default());
        let shared = Arc::clone(&weather);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                // The broker is not up yet, or is going down: the client hears of it and comes again.
                let Ok(server) = TcpStream::connect(("127.0.0.1", backend)) else { continue };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                std::thread::spawn(move || pass(from, to, None));
                let weather = Arc::clone(&shared);
                std::thread::spawn(move || pass(server, client, Some(&weather)));
            }
        });
        Proxy { port, weather }
    }

    /// Each piece of an answer takes this much longer.
    pub fn delay(&self, by: Duration) {
        self.weather.delay.store(by.as_millis() as u64, Ordering::Relaxed);
    }

    /// At most this many bytes of answers per second and connection.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.weather.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Holds every answer back, or lets them go.
    pub fn stall(&self, is_stalled: bool) {
        self.weather.is_stalled.store(is_stalled, Ordering::Relaxed);
    }

    /// Bytes of answers that got through.
    pub fn passed(&self) -> u64 {
        self.weather.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.weather.is_over.store(true, Ordering::Relaxed);
        self.stall(false);
        // Wakes the listener, which then ends.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

/// Copies one direction until either side closes it.
fn pass(mut from: TcpStream, mut to: TcpStream, weather: Option<&Weather>) {
    let mut buffer = [0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if let Some(weather) = weather {
            std::thread::sleep(Duration::from_millis(weather.delay.load(Ordering::Relaxed)));
            while weather.is_stalled.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
            if let rate @ 1.. = weather.rate.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(count as u64 * 1_000_000 / rate));
            }
            weather.passed.fetch_add(count as u64, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
    from.shutdown(Shutdown::Both).ok();
}
