//! What the NAT waits for: sockets and the next deadline, behind one descriptor.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::slab::Key;

/// What an event or deadline is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    Timer,
    /// A listening socket, by its place in the list.
    TcpListener(u32),
    UdpListener(u32),
    Tcp(Key),
    Udp(Key),
    Ping(Key),
    /// The router is to be advertised again.
    Advertisement,
}

impl Source {
    fn pack(self) -> u64 {
        let (kind, rest) = match self {
            Source::Timer => (0, 0),
            Source::TcpListener(i) => (1, u64::from(i)),
            Source::UdpListener(i) => (2, u64::from(i)),
            Source::Tcp(k) => (3, k.pack()),
            Source::Udp(k) => (4, k.pack()),
            Source::Ping(k) => (5, k.pack()),
            Source::Advertisement => (6, 0),
        };
        kind << 56 | rest
    }

    fn unpack(packed: u64) -> Option<Source> {
        let key = Key::unpack(packed);
        Some(match packed >> 56 {
            0 => Source::Timer,
            1 => Source::TcpListener(packed as u32),
            2 => Source::UdpListener(packed as u32),
            3 => Source::Tcp(key),
            4 => Source::Udp(key),
            5 => Source::Ping(key),
            6 => Source::Advertisement,
            _ => return None,
        })
    }
}

/// What has happened to a socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Happened {
    pub(crate) source: Source,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The other side has ended, or there is an error.
    pub(crate) hung_up: bool,
}

/// Events taken at a time.
const BATCH: usize = 64;

/// Sockets and deadlines.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    deadlines: BTreeSet<(Instant, Source)>,
    armed: Option<Instant>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, EventData::new_u64(Source::Timer.pack()), EventFlags::IN)?;
        Ok(Poller { epoll, timer, deadlines: BTreeSet::new(), armed: None })
    }

    /// Watch a socket; each change is told once.
    pub(crate) fn watch(&self, socket: impl AsFd, source: Source) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(source.pack()), flags)?)
    }

    /// Ask to hear of a source not later than at a time. `slot` is where the source
    /// keeps what it has asked for; who is told too early asks again, so that a
    /// deadline that moves on with each packet costs nothing.
    pub(crate) fn wake_by(&mut self, slot: &mut Option<Instant>, when: Instant, source: Source) {
        if slot.is_none_or(|asked| when < asked) {
            self.forget(slot, source);
            *slot = Some(when);
            self.deadlines.insert((when, source));
        }
    }

    /// Take back what a source has asked for.
    pub(crate) fn forget(&mut self, slot: &mut Option<Instant>, source: Source) {
        if let Some(asked) = slot.take() {
            self.deadlines.remove(&(asked, source));
        }
    }

    /// What has happened to sockets since the last call; a full list may not be all.
    pub(crate) fn happened(&mut self) -> Vec<Happened> {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An interrupted or refused wait is an empty one: the descriptor stays readable.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now));
        events
            .iter()
            .filter_map(|e| {
                let flags = e.flags;
                let hung_up = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
                Some(Happened {
                    source: Source::unpack(e.data.u64())?,
                    readable: flags.contains(EventFlags::IN) || hung_up,
                    writable: flags.contains(EventFlags::OUT) || hung_up,
                    hung_up,
                })
            })
            .collect()
    }

    /// Whether a list of [`Poller::happened`] may not be all.
    pub(crate) fn may_have_more(list: &[Happened]) -> bool {
        list.len() >= BATCH
    }

    /// A source whose deadline has passed; its slot is to be emptied.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Source> {
        let first = self.deadlines.first().filter(|d| d.0 <= now)?;
        let source = first.1;
        self.deadlines.pop_first();
        Some(source)
    }

    /// Set the timer to the next deadline, or to now.
    pub(crate) fn arm(&mut self, now: Instant, at_once: bool) {
        let next = if at_once { Some(now) } else { self.deadlines.first().map(|d| d.0) };
        if next == self.armed && next.is_none_or(|n| n > now) {
            return;
        }
        self.armed = next;
        // Zero would disarm it.
        let wait = next.map(|n| n.saturating_duration_since(now).as_nanos().max(1_000) as i64).unwrap_or(0);
        let value = Timespec { tv_sec: wait / 1_000_000_000, tv_nsec: wait % 1_000_000_000 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // Setting it also takes back that it has gone off. It cannot fail: the value is in range.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
