//! `whoami`: an HTTP server that answers with its hostname, environment and addresses; `whoami get URL` is its client. It
//! is the only file in its image, so it handles the signals that a PID 1 must handle: it answers every connection that has
//! been opened, and ends.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command-line program")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a client or server may be silent before the connection is closed.
const PATIENCE: Duration = Duration::from_secs(10);
const REQUEST_BOUND: u64 = 16 << 10;

fn main() {
    end_on_signals();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [] | ["serve"] => serve(),
        ["get", url] => get(url).map(|body| print!("{body}")),
        ["load", url, seconds] => load(url, seconds.parse().unwrap_or(1)),
        ["fail", code] => std::process::exit(code.parse().unwrap_or(1)),
        ["env"] => {
            print!("{}", about());
            Ok(())
        }
        ["eat", megabytes] => eat(megabytes.parse().unwrap_or(0)),
        _ => {
            eprintln!("usage: whoami [serve | get URL | load URL SECONDS | env | eat MEGABYTES | fail CODE]");
            std::process::exit(2);
        }
    };
    if let Err(error) = result {
        eprintln!("whoami: {error}");
        std::process::exit(1);
    }
}

/// Connections that are being answered, and loads that run.
static OPEN: AtomicUsize = AtomicUsize::new(0);
/// The listening socket of a server; -1 if there is none.
static LISTENER: AtomicI32 = AtomicI32::new(-1);
/// Whether a signal has asked the program to end.
static ENDS: AtomicBool = AtomicBool::new(false);

/// Ends the program on SIGTERM or SIGINT, once the open connections are answered and a load has ended. PID 1 gets only
/// signals that it blocks or handles (pid_namespaces(7)).
#[expect(unsafe_code, clippy::exit, reason = "it waits for signals, and they ask the program to end")]
fn end_on_signals() {
    // SAFETY: a signal set is plain data, which sigemptyset(3) initialises.
    let signals = unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGTERM);
        libc::sigaddset(&raw mut signals, libc::SIGINT);
        // Threads that are started later block them too.
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
        signals
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to values that live through the call.
        unsafe { libc::sigwait(&raw const signals, &raw mut signal) };
        ENDS.store(true, Ordering::SeqCst);
        let until = Instant::now() + PATIENCE;
        // A connection is counted before it is accepted, so none is overlooked in this order.
        while (is_waiting(LISTENER.load(Ordering::SeqCst), 0) || OPEN.load(Ordering::SeqCst) > 0)
            && Instant::now() < until
        {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        std::process::exit(0)
    });
}

/// Returns whether a connection waits to be accepted, for which this waits so many milliseconds (-1: for ever).
#[expect(unsafe_code, reason = "poll(2) has no safe wrapper in the standard library")]
fn is_waiting(listener: RawFd, patience: i32) -> bool {
    let mut event = libc::pollfd { fd: listener, events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer is to one element that lives through the call. A negative descriptor has no events (poll(2)).
    unsafe { libc::poll(&raw mut event, 1, patience) };
    event.revents & libc::POLLIN != 0
}

fn about() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut text = format!("hostname: {}\n", read("/proc/sys/kernel/hostname"));
    for (name, value) in std::env::vars() {
        text.push_str(&format!("{name}={value}\n"));
    }
    let mut addresses: Vec<String> = read("/proc/net/fib_trie")
        .lines()
        .zip(read("/proc/net/fib_trie").lines().skip(1))
        .filter(|(_, next)| next.contains("/32 host LOCAL"))
        .filter_map(|(line, _)| line.split_whitespace().last().map(str::to_owned))
        .collect();
    addresses.sort();
    addresses.dedup();
    text.push_str(&format!("addresses: {}\n", addresses.join(" ")));
    text
}

fn serve() -> std::io::Result<()> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "80".into());
    // The first one also takes connections over IPv4; a machine may be without IPv6.
    let listener =
        TcpListener::bind(format!("[::]:{port}")).or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}")))?;
    let task = std::env::var("TASK").unwrap_or_default();
    println!("whoami {task} listens at port {port}");
    LISTENER.store(listener.as_raw_fd(), Ordering::SeqCst);
    loop {
        is_waiting(listener.as_raw_fd(), -1);
        OPEN.fetch_add(1, Ordering::SeqCst);
        let (stream, _) = listener.accept()?;
        std::thread::spawn(move || {
            let _ = answer(stream);
            OPEN.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn answer(stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = BufReader::new(stream.try_clone()?.take(REQUEST_BOUND));
    let mut line = String::new();
    request.read_line(&mut line)?;
    println!("{}", line.trim());
    let mut header = String::new();
    while request.read_line(&mut header)? > 2 {
        header.clear();
    }
    let body = about();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn get(url: &str) -> std::io::Result<String> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let Some((_, body)) = answer.split_once("\r\n\r\n") else {
        return Err(std::io::Error::other(format!("the answer was cut off after {} bytes", answer.len())));
    };
    Ok(body.to_owned())
}

/// Sends one request after the other, each over a new connection and none twice, until a signal comes or the time is over.
/// Prints how many failed.
fn load(url: &str, seconds: u64) -> std::io::Result<()> {
    OPEN.fetch_add(1, Ordering::SeqCst);
    let begun = Instant::now();
    let (mut sent, mut failed) = (0, 0);
    while begun.elapsed() < Duration::from_secs(seconds) && !ENDS.load(Ordering::SeqCst) {
        sent += 1;
        if let Err(error) = get(url) {
            failed += 1;
            eprintln!("after {} ms: {error}", begun.elapsed().as_millis());
        }
    }
    println!("{sent} requests, {failed} failed");
    OPEN.fetch_sub(1, Ordering::SeqCst);
    Ok(())
}

/// Allocates memory, to run into a limit; then serves.
fn eat(megabytes: usize) -> std::io::Result<()> {
    let mut eaten = Vec::new();
    for _ in 0..megabytes {
        eaten.push(std::hint::black_box(vec![1u8; 1 << 20]));
    }
    println!("ate {megabytes} MB");
    serve()
}
