//! The end of the socket that a machine's process holds.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;

use crate::protocol::{Action, Refusal, RefusalKind, Reply, Request, Response};
use crate::wire::{self, LineError, Lines, MAX_REQUEST};

/// Connections served at once, each by a thread: clients send one request and
/// leave, so more are a client's defect.
pub const MAX_CONNECTIONS: usize = 16;
/// Of those, consoles at most: they stay, and a machine has to be ended all the same.
pub const MAX_CONSOLES: usize = 12;
/// How long a request may take to arrive, and a silent connection is kept.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long one write of a response may take.
const RESPONSE_TIME: Duration = Duration::from_secs(5);
/// How long to wait when the host has no descriptor left for a connection.
const RETRY: Duration = Duration::from_millis(200);

/// Who does what is asked.
pub trait Handler: Send + Sync + 'static {
    /// Do it and answer. Called from several threads; may take its time. `files`:
    /// what the client has opened for it, at most [`crate::MAX_FILES`].
    ///
    /// # Errors
    /// When it was not done; nothing has changed then.
    fn handle(&self, action: Action, files: Vec<OwnedFd>) -> Result<Reply, Refusal>;

    /// After [`Reply::Attached`]: the connection is the console's until this
    /// returns. `typed`: what the client sent behind its request.
    fn attach(&self, _stream: Arc<UnixStream>, _typed: Vec<u8>) {}
}

/// A socket that is being served, until the process ends.
#[derive(Debug)]
pub struct Server(Arc<InHand>);

/// Requests that were read and whose answers are not yet written.
#[derive(Debug, Default)]
struct InHand {
    count: Mutex<usize>,
    changed: Condvar,
}

impl InHand {
    fn change(&self, f: impl FnOnce(&mut usize)) {
        f(&mut self.count.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Server {
    /// Wait until every request in hand is answered, at most `limit`: a process
    /// that ends because it was asked to lets its answer out first.
    pub fn finish(&self, limit: Duration) {
        let count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.changed.wait_timeout_while(count, limit, |count| *count > 0));
    }
}

/// Serve a socket on a thread of its own.
///
/// # Errors
/// When the host refuses the thread.
pub fn serve(listener: UnixListener, handler: Arc<dyn Handler>) -> io::Result<Server> {
    let in_hand = Arc::new(InHand::default());
    let server = Server(in_hand.clone());
    std::thread::Builder::new()
        .name("control".to_string())
        .spawn(move || accept(&listener, &handler, &in_hand))
        .map(|_| server)
}

fn accept(listener: &UnixListener, handler: &Arc<dyn Handler>, in_hand: &Arc<InHand>) {
    let (open, consoles) = (Arc::default(), Arc::default());
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) => {
                std::thread::sleep(RETRY);
                continue;
            }
        };
        let Some(place) = Place::take(&open, MAX_CONNECTIONS) else {
            let message = format!("{MAX_CONNECTIONS} connections are open; close one and ask again");
            refuse(&stream, Refusal::new(RefusalKind::Busy, message));
            continue;
        };
        let (handler, in_hand, consoles) = (handler.clone(), in_hand.clone(), Arc::clone(&consoles));
        // A host that refuses the thread drops the connection, which its client sees.
        let _ = std::thread::Builder::new().name("control-client".to_string()).spawn(move || {
            let _place = place;
            connection(&Arc::new(stream), handler.as_ref(), &in_hand, &consoles);
        });
    }
}

/// One of the [`MAX_CONNECTIONS`], or of the [`MAX_CONSOLES`].
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Place> {
        let place = Place(taken.clone());
        // Dropping the place gives it back.
        (taken.fetch_add(1, Ordering::SeqCst) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a peer may give orders: the machine's own user, and root. The
/// directory's mode keeps others out already; this holds where it was opened.
fn may_command(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

fn connection(
    stream: &Arc<UnixStream>,
    handler: &dyn Handler,
    in_hand: &InHand,
    consoles: &Arc<AtomicUsize>,
) {
    let own = rustix::process::geteuid().as_raw();
    match socket_peercred(stream) {
        Ok(peer) if may_command(peer.uid.as_raw(), own) => {}
        Ok(peer) => {
            let message = format!(
                "user {} may not command a machine of user {own}; ask as that user",
                peer.uid.as_raw()
            );
            return refuse(stream, Refusal::new(RefusalKind::Forbidden, message));
        }
        Err(e) => {
            let message = format!("the host does not say who is asking: {e}");
            return refuse(stream, Refusal::new(RefusalKind::Forbidden, message));
        }
    }
    let mut lines = Lines::new(stream, MAX_REQUEST);
    loop {
        let line = match lines.next(REQUEST_TIME) {
            Ok(Some(line)) => line,
            Ok(None) | Err(LineError::Io(_)) => return,
            Err(e @ LineError::TooLong(_)) => {
                return refuse(stream, Refusal::new(RefusalKind::TooLong, e.to_string()));
            }
            Err(e) => return refuse(stream, Refusal::new(RefusalKind::TooSlow, e.to_string())),
        };
        in_hand.change(|count| *count += 1);
        let files = lines.take_files();
        let mut place = None;
        let result = Request::parse(&line).and_then(|request| {
            if request.action == Action::Console {
                place = Some(Place::take(consoles, MAX_CONSOLES).ok_or_else(|| {
                    let message = format!("{MAX_CONSOLES} consoles are open; leave one and ask again");
                    Refusal::new(RefusalKind::Busy, message)
                })?);
            }
            handler.handle(request.action, files)
        });
        let attached = matches!(result, Ok(Reply::Attached));
        let sent = wire::send(stream, &Response::new(result), RESPONSE_TIME);
        in_hand.change(|count| *count -= 1);
        if sent.is_err() {
            return;
        }
        if attached {
            handler.attach(stream.clone(), lines.rest());
            return drop(place);
        }
    }
}

/// Tell a peer why, as far as it listens.
fn refuse(stream: &UnixStream, refusal: Refusal) {
    let _ = wire::send(stream, &Response::new(Err(refusal)), Duration::from_millis(100));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{CallError, Client};
    use std::io::{Read, Write};
    use std::path::PathBuf;

    #[test]
    fn only_the_owner_and_root_command() {
        for (peer, own, may) in
            [(1000, 1000, true), (0, 1000, true), (1001, 1000, false), (0, 0, true), (1, 0, false)]
        {
            assert_eq!(may_command(peer, own), may, "{peer} commands {own}");
        }
    }

    struct Echo;

    impl Handler for Echo {
        fn handle(&self, action: Action, files: Vec<OwnedFd>) -> Result<Reply, Refusal> {
            match action {
                Action::AddDisk { .. } => Ok(Reply::Added { id: format!("{} files", files.len()) }),
                Action::SwitchEngine { engine } => Ok(Reply::Switched { engine, took_us: 1 }),
                Action::End => Err(Refusal::new(RefusalKind::Refused, "not today")),
                Action::Console => Ok(Reply::Attached),
                _ => Ok(Reply::Done),
            }
        }
        fn attach(&self, stream: Arc<UnixStream>, typed: Vec<u8>) {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            (&*stream).write_all(b"hello ").unwrap();
            (&*stream).write_all(&typed).unwrap();
            let _ = std::io::copy(&mut &*stream, &mut &*stream);
        }
    }

    struct Socket(PathBuf);

    impl Socket {
        fn new() -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("strata-api-{}-{n}", std::process::id()));
            serve(UnixListener::bind(&path).unwrap(), Arc::new(Echo)).unwrap();
            Socket(path)
        }
        fn connect(&self) -> UnixStream {
            UnixStream::connect(&self.0).unwrap()
        }
    }

    impl Drop for Socket {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn one_connection_carries_many_requests_and_errors_do_not_end_it() {
        let socket = Socket::new();
        let mut client = Client::connect(&socket.0).unwrap();
        for engine in ["jit", "interp"] {
            let reply = client.call(Action::SwitchEngine { engine: engine.into() }, LIMIT).unwrap();
            assert_eq!(reply, Reply::Switched { engine: engine.into(), took_us: 1 });
            let refusal = client.call(Action::End, LIMIT).unwrap_err();
            assert!(matches!(refusal, CallError::Refused(r) if r.message == "not today"));
        }
    }

    #[test]
    fn files_reach_whom_they_are_for() {
        use std::os::fd::AsFd;
        let socket = Socket::new();
        let mut client = Client::connect(&socket.0).unwrap();
        let (a, _b) = UnixStream::pair().unwrap();
        for files in [2, 0, 1] {
            let action = Action::AddDisk { spec: serde_json::Value::Null };
            let reply = client.call_with(action, &vec![a.as_fd(); files], LIMIT).unwrap();
            assert_eq!(reply, Reply::Added { id: format!("{files} files") });
        }
    }

    #[test]
    fn a_connection_becomes_a_console_and_loses_no_byte() {
        let socket = Socket::new();
        let refused = Client::connect(&socket.0).unwrap().call(Action::End, LIMIT);
        assert!(refused.is_err());
        let (mut stream, first) = Client::connect(&socket.0).unwrap().attach(LIMIT).unwrap();
        stream.write_all(b"typed").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = first;
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"hello typed");
        // What came right behind the request is typed too.
        let answer = answer(b"{\"version\":1,\"action\":\"console\"}\nearly");
        assert!(answer.ends_with("}\nhello early"), "{answer}");
    }

    /// What the server answers to raw bytes.
    fn answer(bytes: &[u8]) -> String {
        let socket = Socket::new();
        let mut stream = socket.connect();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        // The server may have answered and closed before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut text = Vec::new();
        // A reset after the answer, for what was not read, is no answer less.
        let _ = stream.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn garbage_gets_a_reason() {
        fn check(bytes: &[u8], text: &str) {
            let answer = answer(bytes);
            assert!(
                answer.contains(text),
                "{:?}: {answer}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
            );
        }
        check(b"GET / HTTP/1.1\r\n\r\n", "bad-request");
        check(b"\0\0\0\0\n", "bad-request");
        check(b"{\"version\":9,\"action\":\"pause\"}\n", "wrong-version");
        check(&[b'x'; MAX_REQUEST + 1], "too-long");
        check(b"{\"version\":1,\"action\":\"pause\"}", "no end");
        assert_eq!(answer(b""), "");
        let two = answer(b"nonsense\n{\"version\":1,\"action\":\"pause\"}\n");
        assert!(two.contains("bad-request") && two.contains("done"), "{two}");
    }

    /// Answers late.
    struct Slow(Duration);

    impl Handler for Slow {
        fn handle(&self, _: Action, _: Vec<OwnedFd>) -> Result<Reply, Refusal> {
            std::thread::sleep(self.0);
            Ok(Reply::Done)
        }
    }

    #[test]
    fn a_server_that_finishes_lets_answers_out_but_does_not_wait_for_ever() {
        let path = std::env::temp_dir().join(format!("strata-api-slow-{}", std::process::id()));
        let finished = |takes: Duration, limit: Duration| {
            let _ = std::fs::remove_file(&path);
            let server = serve(UnixListener::bind(&path).unwrap(), Arc::new(Slow(takes))).unwrap();
            server.finish(LIMIT);
            let mut client = Client::connect(&path).unwrap();
            let asking = std::thread::spawn(move || client.call(Action::End, LIMIT));
            let begun = || *server.0.count.lock().unwrap() > 0;
            while !begun() {
                std::thread::yield_now();
            }
            server.finish(limit);
            let answered = !begun();
            asking.join().unwrap().unwrap();
            answered
        };
        assert!(finished(Duration::from_millis(50), LIMIT));
        assert!(!finished(Duration::from_secs(1), Duration::from_millis(1)));
        let _ = std::fs::remove_file(&path);
    }

    #[test]
    fn consoles_leave_places_for_other_requests() {
        let socket = Socket::new();
        let attach = || Client::connect(&socket.0).unwrap().attach(LIMIT);
        let held: Vec<_> = (0..MAX_CONSOLES).map(|_| attach().unwrap()).collect();
        let refused = attach().unwrap_err();
        assert!(matches!(&refused, CallError::Refused(r) if r.kind == RefusalKind::Busy), "{refused}");
        assert_eq!(Client::connect(&socket.0).unwrap().call(Action::Info, LIMIT).unwrap(), Reply::Done);
        drop(held);
        let start = std::time::Instant::now();
        while attach().is_err() {
            assert!(start.elapsed() < LIMIT, "no console came back");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn more_connections_than_places_are_told_so_and_places_come_back() {
        let socket = Socket::new();
        let mut held: Vec<_> = (0..MAX_CONNECTIONS).map(|_| Client::connect(&socket.0).unwrap()).collect();
        // Each is being served once it has answered.
        held.iter_mut().for_each(|c| assert_eq!(c.call(Action::Info, LIMIT).unwrap(), Reply::Done));
        let refused = Client::connect(&socket.0).unwrap().call(Action::Info, LIMIT).unwrap_err();
        assert!(matches!(&refused, CallError::Refused(r) if r.kind == RefusalKind::Busy), "{refused}");
        drop(held);
        let start = std::time::Instant::now();
        while Client::connect(&socket.0).unwrap().call(Action::Info, LIMIT).is_err() {
            assert!(start.elapsed() < LIMIT, "no place came back");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
