//! The console device (virtio 1.2, section 5.3): ports between guest programs and
//! the host, the first of them a terminal.
//!
//! [`Console::terminal`] has one port and offers no more, [`Console::new`] several.
//! A terminal alone tells its size in the configuration, where the standard and
//! every driver agree. The message that several ports need (5.3.6.2) carries
//! columns, then rows; Linux took it the other way round until commit 5326ab737a47
//! (2025), so a machine's terminal has a device of its own.
//!
//! A driver without multiport support gets the first port alone. What a guest
//! writes goes to the port's [`PortOutput`]; what the host has for the guest it
//! hands to [`ConsoleHandle::input`], which takes as much as there is room for.

mod control;
mod handle;
mod work;

use std::sync::Arc;

use saved_state::StateError;
use serde::{Deserialize, Serialize};
use virtio_core::{ActivateError, Activation, DeviceType, Doorbell, Queue, VirtioDevice, Worker};

pub use handle::{ConsoleHandle, INPUT_BUFFER};
use handle::{Shared, lock};
use work::{MAX_PENDING, Parts, Work};

const NAME: &str = "virtio-console";
/// Ports of a device at most: with their queues what one worker serves.
pub const MAX_PORTS: usize = 31;

/// Feature bits (5.3.3).
mod feature {
    pub const SIZE: u64 = 1 << 0;
    pub const MULTIPORT: u64 = 1 << 1;
    pub const EMERG_WRITE: u64 = 1 << 2;
}

/// Size of each port's queues.
const QUEUE_SIZE: u16 = 128;
/// Queues of control messages.
const CONTROL_SIZE: u16 = 64;
/// Offset of the emergency write register (5.3.4).
const EMERGENCY: u64 = 8;

/// Where a port's output goes. Called on the device's thread; may block, which
/// holds up this console alone.
pub trait PortOutput: Send {
    /// The guest wrote these bytes.
    fn write(&mut self, bytes: &[u8]);
    /// A guest program opened or closed the port.
    fn set_open(&mut self, _open: bool) {}
}

/// One port.
pub struct Port {
    /// Name that guests show at /dev/virtio-ports/NAME; empty: none.
    pub name: String,
    /// A terminal (hvc), not a plain channel.
    pub console: bool,
    /// Where its output goes.
    pub output: Box<dyn PortOutput>,
}

/// The device.
pub struct Console {
    // Static configuration.
    sizes: Vec<u16>,
    multiport: bool,
    // Runtime glue, and the volatile state that the owner sees too.
    shared: Arc<Shared>,
    worker: Option<Worker<Work>>,
    /// What the worker has while there is one.
    parts: Parts,
}

/// The saved state.
#[derive(Serialize, Deserialize)]
struct State {
    size: (u16, u16),
    ready: bool,
    ports: Vec<PortState>,
    /// Control messages the guest has yet to take.
    pending: Vec<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct PortState {
    open: bool,
    input: Vec<u8>,
}

impl Console {
    /// A console that is one terminal, without control messages.
    pub fn terminal(output: Box<dyn PortOutput>) -> Self {
        Self::make(vec![Port { name: String::new(), console: true, output }], false)
    }

    /// A console with these ports; the first is there for every driver.
    ///
    /// # Panics
    /// Without a port or with more than [`MAX_PORTS`]: an error of the board's author.
    pub fn new(ports: Vec<Port>) -> Self {
        assert!((1..=MAX_PORTS).contains(&ports.len()), "{} ports", ports.len());
        Self::make(ports, true)
    }

    fn make(ports: Vec<Port>, multiport: bool) -> Self {
        let mut sizes = vec![QUEUE_SIZE, QUEUE_SIZE];
        if multiport {
            sizes.extend([CONTROL_SIZE, CONTROL_SIZE]);
            sizes.resize(2 + 2 * ports.len(), QUEUE_SIZE);
        }
        Console {
            sizes,
            multiport,
            shared: Arc::new(Shared::new(ports.len())),
            worker: None,
            parts: Parts { ports, ..Parts::default() },
        }
    }

    /// The host's side of all ports.
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle(self.shared.clone())
    }

    fn config(&self) -> [u8; 12] {
        let (columns, rows) = self.shared.size();
        let mut config = [0; 12];
        config[..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
        config[4..8].copy_from_slice(&(self.shared.ports.len() as u32).to_le_bytes());
        config
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &'static str {
        NAME
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }
    fn features(&self) -> u64 {
        let several = if self.multiport { feature::MULTIPORT } else { 0 };
        feature::SIZE | feature::EMERG_WRITE | several
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }
    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        let config = self.config();
        virtio_core::read_config(&config, offset, to);
    }
    /// The emergency write, which works before the driver has set anything up.
    fn config_write(&mut self, offset: u64, from: &[u8]) {
        if let (EMERGENCY, Some(&byte), Some(port)) = (offset, from.first(), self.parts.ports.first_mut()) {
            port.output.write(&[byte]);
        }
    }
    fn activate(&mut self, a: Activation) -> Result<(), ActivateError> {
        let (inline, interrupt) = (a.inline, a.interrupt.clone());
        let multiport = a.features & feature::MULTIPORT != 0;
        let work = Work::new(a.queues, multiport, std::mem::take(&mut self.parts), self.shared.clone());
        let worker = Worker::start("console", self.sizes.len() as u16, inline, work)
            .map_err(|error| ActivateError::Host { what: "a thread", error })?;
        self.shared.connect(Some(interrupt), |queue| worker.doorbell(queue));
        self.worker = Some(worker);
        Ok(())
    }
    fn notify(&mut self, queue: u16) {
        if let Some(worker) = &mut self.worker {
            worker.notify(queue);
        }
    }
    fn doorbell(&self, queue: u16) -> Option<Doorbell> {
        self.worker.as_ref()?.doorbell(queue)
    }
    fn quiesce(&mut self) -> Vec<Option<Queue>> {
        self.shared.connect(None, |_| None);
        let Some(work) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        let (queues, parts) = work.into_parts();
        self.parts = parts;
        queues
    }
    fn reset(&mut self) {
        for (port, shared) in self.parts.ports.iter_mut().zip(&self.shared.ports) {
            let mut state = lock(shared);
            if std::mem::take(&mut state.open) {
                port.output.set_open(false);
            }
            state.input.clear();
        }
        self.parts.pending.clear();
        self.shared.set_ready(false);
    }
    fn save(&self) -> Vec<u8> {
        let ports = self.shared.ports.iter().map(|p| {
            let p = lock(p);
            PortState { open: p.open, input: p.input.iter().copied().collect() }
        });
        let state = State {
            size: self.shared.size(),
            ready: self.shared.is_ready(),
            ports: ports.collect(),
            pending: self.parts.pending.iter().cloned().collect(),
        };
        // Plain values always encode.
        postcard::to_stdvec(&state).unwrap_or_default()
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let contents =
            |e: postcard::Error| StateError::Contents { section: NAME.to_string(), cause: e.to_string() };
        let State { size, ready, ports, pending } = postcard::from_bytes(state).map_err(contents)?;
        let count = self.shared.ports.len();
        StateError::check(ports.len() == count, NAME, "ports", ports.len() as u64, "the device's ports")?;
        let few = pending.len() <= MAX_PENDING;
        StateError::check(few, NAME, "control messages", pending.len() as u64, "at most 256")?;
        for PortState { open: _, input } in &ports {
            StateError::check(input.len() <= INPUT_BUFFER, NAME, "input", input.len() as u64, "64 KiB")?;
        }
        for (PortState { open, input }, shared) in ports.into_iter().zip(&self.shared.ports) {
            let mut shared = lock(shared);
            (shared.open, shared.input) = (open, input.into());
        }
        self.parts.pending = pending.into();
        self.shared.set_size(size);
        self.shared.set_ready(ready);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
