//! A machine's console for those who come to its control socket.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chipset::{BufferedOutput, SerialOutput};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes of output kept for who comes later: a few screens.
const RECENT: usize = 16 << 10;
/// Bytes of input taken at once.
const TYPED: usize = 256;
/// How long a client that left is served on: what it typed goes to a guest that reads.
const LINGER: Duration = Duration::from_secs(5);

/// What a console shows, for any number of clients.
#[derive(Default)]
pub struct ConsoleHub(Mutex<State>);

#[derive(Default)]
struct State {
    recent: VecDeque<u8>,
    clients: Vec<(u64, BufferedOutput)>,
    next: u64,
}

impl ConsoleHub {
    /// The guest has shown this. A client that stopped reading loses bytes, and
    /// does not stop the guest.
    pub fn put(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.recent.extend(bytes);
        let over = state.recent.len().saturating_sub(RECENT);
        state.recent.drain(..over);
        state.clients.iter_mut().for_each(|(_, out)| out.put(bytes));
    }

    /// Show all that comes, after what was last shown, to a client; its number.
    fn add(&self, writer: Box<dyn Write + Send>) -> io::Result<u64> {
        let mut out = BufferedOutput::spawn("console-client", writer)?;
        let mut state = self.lock();
        let (front, back) = state.recent.as_slices();
        out.put(front);
        out.put(back);
        let number = state.next;
        state.next += 1;
        state.clients.push((number, out));
        Ok(number)
    }

    fn remove(&self, number: u64) {
        let mut state = self.lock();
        let gone: Vec<_> = state.clients.extract_if(.., |(n, _)| *n == number).collect();
        drop(state);
        // Its thread ends, which may take a moment, without the lock.
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what was typed, waiting until the guest receives it, but only as long as the
/// function it is given says so.
type Input = Box<dyn Fn(&[u8], &dyn Fn() -> bool) + Send + Sync>;

/// Says how long a guest that does not read may hold a client's thread: as long as the
/// client is there, and a little longer, for what it typed last.
struct Attention {
    stream: Arc<UnixStream>,
    linger: Duration,
    /// When the client was first seen to be gone.
    gone: Cell<Option<Instant>>,
}

impl Attention {
    fn goes_on(&self) -> bool {
        if self.gone.get().is_none() && hung_up(&self.stream) {
            self.gone.set(Some(Instant::now()));
        }
        self.gone.get().is_none_or(|since| since.elapsed() < self.linger)
    }
}

/// Whether the other end is closed, both ways.
fn hung_up(stream: &UnixStream) -> bool {
    let mut poll_fd = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut poll_fd, Some(&Timespec::default())).is_ok()
        && poll_fd[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// A console both ways.
pub struct Console {
    hub: Arc<ConsoleHub>,
    input: Input,
    linger: Duration,
}

/// A socket that several threads write to.
struct Shared(Arc<UnixStream>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Console {
    /// A console that shows what goes to `hub`; `input` takes what is typed, and may
    /// wait with it as long as the function it is given answers true.
    pub fn new(
        hub: Arc<ConsoleHub>,
        input: impl Fn(&[u8], &dyn Fn() -> bool) + Send + Sync + 'static,
    ) -> Self {
        Console { hub, input: Box::new(input), linger: LINGER }
    }

    /// Serve a client until it leaves. `typed`: what it sent already.
    pub(crate) fn serve(&self, stream: Arc<UnixStream>, typed: &[u8]) {
        // A client that thinks for an hour is not gone.
        if stream.set_read_timeout(None).is_err() {
            return;
        }
        let Ok(number) = self.hub.add(Box::new(Shared(stream.clone()))) else { return };
        let attention = Attention { stream: stream.clone(), linger: self.linger, gone: Cell::new(None) };
        let goes_on = || attention.goes_on();
        (self.input)(typed, &goes_on);
        let mut buffer = [0; TYPED];
        while goes_on() {
            match (&*stream).read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => (self.input)(&buffer[..n], &goes_on),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Wakes its thread, if that waits for a client that does not read.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        self.hub.remove(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_see_what_was_and_what_comes_and_type() {
        let hub = Arc::new(ConsoleHub::default());
        hub.put(&vec![b'.'; RECENT]);
        hub.put(b"before ");
        let typed = Arc::new(Mutex::new(Vec::new()));
        let to = typed.clone();
        let console = Arc::new(Console::new(hub.clone(), move |bytes, _| to.lock().unwrap().extend(bytes)));
        let serve = |console: &Arc<Console>| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let console = console.clone();
            let thread = std::thread::spawn(move || console.serve(Arc::new(theirs), b"early "));
            (ours, thread)
        };
        let (mut one, served) = serve(&console);
        let (two, _served) = serve(&console);
        one.write_all(b"late").unwrap();
        let start = Instant::now();
        while hub.lock().clients.len() < 2 || typed.lock().unwrap().len() < 16 {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
        hub.put(b"after");
        let mut seen = vec![0; RECENT + 5];
        one.read_exact(&mut seen).unwrap();
        assert!(seen.ends_with(b"..before after"));
        one.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(one.read(&mut [0]).unwrap(), 0);
        served.join().unwrap();
        assert_eq!(hub.lock().clients.len(), 1);
        drop(two);
        let typed = String::from_utf8(typed.lock().unwrap().clone()).unwrap();
        assert!(typed.contains("late") && typed.matches("early ").count() == 2, "{typed}");
    }
    #[test]
    fn a_guest_that_reads_nothing_keeps_no_client_that_left() {
        let deaf = |_: &[u8], goes_on: &dyn Fn() -> bool| {
            while goes_on() {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let mut console = Console::new(Arc::default(), deaf);
        console.linger = Duration::from_millis(20);
        let console = Arc::new(console);
        // What came with the request, what is typed, and much more of it.
        for (early, late) in [(1, 0), (0, 1), (0, 100_000)] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let own = console.clone();
            let served = std::thread::spawn(move || own.serve(Arc::new(theirs), &vec![7; early]));
            ours.write_all(&vec![7; late]).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            assert!(!served.is_finished(), "a client that stays is served");
            drop(ours);
            let start = Instant::now();
            while !served.is_finished() {
                assert!(start.elapsed() < Duration::from_secs(20), "{early} {late}: it is served for ever");
                std::thread::sleep(Duration::from_millis(1));
            }
            served.join().unwrap();
        }
    }
}
