//! The host's side of a console.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_core::{Doorbell, Interrupt};

use crate::work::{CONTROL_IN, receive_queue};

/// Bytes of input kept for each port until the guest takes them.
pub const INPUT_BUFFER: usize = 64 << 10;

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One port, as device and host see it.
#[derive(Default)]
pub(crate) struct SharedPort {
    /// A guest program has it open.
    pub open: bool,
    /// What the guest has yet to take.
    pub input: VecDeque<u8>,
    /// Nobody is at the host's end.
    pub alone: bool,
    /// That has changed and the driver has not been told.
    pub alone_changed: bool,
    bell: Option<Doorbell>,
}

/// What the device's thread and the host share. Its locks are held for moments
/// only, and none while another is taken.
pub(crate) struct Shared {
    pub ports: Vec<Mutex<SharedPort>>,
    /// Columns in the low half, rows in the high one.
    size: AtomicU32,
    /// The size has changed and the driver has not been told.
    resized: AtomicBool,
    /// The driver has said that it is ready for control messages.
    ready: AtomicBool,
    interrupt: Mutex<Option<Interrupt>>,
    control: Mutex<Option<Doorbell>>,
}

impl Shared {
    pub fn new(ports: usize) -> Self {
        Shared {
            ports: (0..ports).map(|_| Mutex::default()).collect(),
            size: AtomicU32::new(80 | 25 << 16),
            resized: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            interrupt: Mutex::default(),
            control: Mutex::default(),
        }
    }

    pub fn size(&self) -> (u16, u16) {
        let size = self.size.load(Ordering::Relaxed);
        (size as u16, (size >> 16) as u16)
    }

    pub fn set_size(&self, (columns, rows): (u16, u16)) {
        self.size.store(u32::from(columns) | u32::from(rows) << 16, Ordering::Relaxed);
    }

    pub fn take_resized(&self) -> bool {
        self.resized.swap(false, Ordering::AcqRel)
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    pub fn connect(&self, interrupt: Option<Interrupt>, bell: impl Fn(u16) -> Option<Doorbell>) {
        for (number, port) in self.ports.iter().enumerate() {
            lock(port).bell = bell(receive_queue(number));
        }
        *lock(&self.control) = bell(CONTROL_IN);
        *lock(&self.interrupt) = interrupt;
    }
}

/// The host's side of all ports of a console. Clones are the same console.
#[derive(Clone)]
pub struct ConsoleHandle(pub(crate) Arc<Shared>);

impl ConsoleHandle {
    /// Ports.
    pub fn ports(&self) -> usize {
        self.0.ports.len()
    }

    /// Bytes for the guest. Answers how many there was room for; the rest is to be
    /// offered again. In virtual time the guest gets them when it next rings.
    pub fn input(&self, port: usize, bytes: &[u8]) -> usize {
        let Some(port) = self.0.ports.get(port) else { return bytes.len() };
        let mut port = lock(port);
        let n = bytes.len().min(INPUT_BUFFER - port.input.len().min(INPUT_BUFFER));
        port.input.extend(&bytes[..n]);
        if let Some(bell) = port.bell.as_ref().filter(|_| n > 0) {
            bell.ring();
        }
        n
    }

    /// Whether a guest program has the port open; known only of drivers with
    /// multiport support.
    pub fn is_open(&self, port: usize) -> bool {
        self.0.ports.get(port).is_some_and(|p| lock(p).open)
    }

    /// Whether somebody is at the host's end of a port; at first there is. The
    /// driver is told, and writers of the guest wait while there is nobody.
    pub fn set_connected(&self, port: usize, connected: bool) {
        let Some(port) = self.0.ports.get(port) else { return };
        {
            let mut port = lock(port);
            port.alone_changed |= port.alone == connected;
            port.alone = !connected;
        }
        if let Some(bell) = &*lock(&self.0.control) {
            bell.ring();
        }
    }

    /// The terminal's size, in characters.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.set_size((columns, rows));
        self.0.resized.store(true, Ordering::Release);
        if let Some(bell) = &*lock(&self.0.control) {
            bell.ring();
        }
        let interrupt = lock(&self.0.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }
}
