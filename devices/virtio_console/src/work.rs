//! What moves bytes and control messages, on the worker's thread or inline.

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_core::{Handler, Queue};

use crate::Port;
use crate::control::{Control, event};
use crate::handle::{Shared, lock};

/// Queue of control messages to the guest.
pub(crate) const CONTROL_IN: u16 = 2;
/// Queue of control messages from the guest.
const CONTROL_OUT: u16 = 3;
/// Control messages that wait for buffers of the guest at most: more than an
/// honest driver ever lets wait. Further ones are lost.
pub(crate) const MAX_PENDING: usize = 256;
/// Bytes moved at a time.
const PIECE: usize = 4096;

/// The queue that takes a port's bytes to the guest (5.3.2); its bytes from the
/// guest come by the next one.
pub(crate) fn receive_queue(port: usize) -> u16 {
    if port == 0 { 0 } else { 2 + 2 * port as u16 }
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    ToGuest(usize),
    FromGuest(usize),
    ControlIn,
    ControlOut,
}

fn role(queue: u16) -> Role {
    match queue {
        0 => Role::ToGuest(0),
        1 => Role::FromGuest(0),
        CONTROL_IN => Role::ControlIn,
        CONTROL_OUT => Role::ControlOut,
        q if q % 2 == 0 => Role::ToGuest(usize::from(q / 2 - 1)),
        q => Role::FromGuest(usize::from(q / 2 - 1)),
    }
}

/// What a device keeps when its worker ends.
#[derive(Default)]
pub(crate) struct Parts {
    pub ports: Vec<Port>,
    /// Control messages that wait for buffers.
    pub pending: VecDeque<Vec<u8>>,
}

pub(crate) struct Work {
    queues: Vec<Option<Queue>>,
    multiport: bool,
    ports: Vec<Port>,
    shared: Arc<Shared>,
    pending: VecDeque<Vec<u8>>,
}

impl Work {
    pub fn new(queues: Vec<Option<Queue>>, multiport: bool, parts: Parts, shared: Arc<Shared>) -> Self {
        let Parts { ports, pending } = parts;
        Work { queues, multiport, ports, shared, pending }
    }

    pub fn into_parts(self) -> (Vec<Option<Queue>>, Parts) {
        (self.queues, Parts { ports: self.ports, pending: self.pending })
    }

    fn queue_at(&mut self, index: u16) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(index))?.as_mut()
    }

    /// Give the guest what there is for it.
    fn deliver(&mut self, number: usize) {
        let shared = self.shared.clone();
        let Some(port) = shared.ports.get(number) else { return };
        // A plain channel that nobody has open keeps its bytes.
        let wanted = !self.multiport || self.ports.get(number).is_some_and(|p| p.console) || lock(port).open;
        let Some(queue) = self.queue_at(receive_queue(number)).filter(|_| wanted) else { return };
        loop {
            // The lock is not held while bytes are copied into guest memory.
            let mut bytes = [0; PIECE];
            let n = {
                let port = lock(port);
                let (front, _) = port.input.as_slices();
                let n = front.len().min(PIECE);
                bytes[..n].copy_from_slice(&front[..n]);
                n
            };
            if n == 0 {
                break;
            }
            let Some(chain) = queue.pop() else { break };
            let mut writer = chain.writer();
            let given = writer.write_some(&bytes[..n]);
            let written = writer.written();
            queue.complete(chain, written);
            lock(port).input.drain(..given);
        }
        queue.signal();
    }

    /// Take what the guest has written.
    fn collect(&mut self, number: usize) {
        let (queues, ports) = (&mut self.queues, &mut self.ports);
        let index = usize::from(receive_queue(number)) + 1;
        let Some(Some(queue)) = queues.get_mut(index) else { return };
        let mut bytes = [0; PIECE];
        while let Some(chain) = queue.pop() {
            let mut reader = chain.reader();
            while let n @ 1.. = reader.read_some(&mut bytes) {
                if let Some(port) = ports.get_mut(number) {
                    port.output.write(&bytes[..n]);
                }
            }
            queue.complete(chain, 0);
        }
        queue.signal();
    }

    fn say(&mut self, port: usize, event: u16, value: u16, rest: &[u8]) {
        if self.pending.len() < MAX_PENDING {
            self.pending.push_back(Control { port: port as u32, event, value }.encode(rest));
        }
    }

    /// Send control messages as far as the guest has buffers for them.
    fn control_in(&mut self) {
        if !self.multiport {
            return;
        }
        if self.shared.is_ready() && self.shared.take_resized() {
            self.say_size();
        }
        self.say_connections();
        let pending = &mut self.pending;
        let Some(Some(queue)) = self.queues.get_mut(usize::from(CONTROL_IN)) else { return };
        while let Some(message) = pending.front() {
            let Some(chain) = queue.pop() else { break };
            let mut writer = chain.writer();
            writer.write_some(message);
            let written = writer.written();
            queue.complete(chain, written);
            pending.pop_front();
        }
        queue.signal();
    }

    /// Who has come to the host's end of a port, or left it.
    fn say_connections(&mut self) {
        if !self.shared.is_ready() {
            return;
        }
        let shared = self.shared.clone();
        for (number, port) in shared.ports.iter().enumerate() {
            let alone = {
                let mut port = lock(port);
                std::mem::take(&mut port.alone_changed).then_some(port.alone)
            };
            if let Some(alone) = alone {
                self.say(number, event::PORT_OPEN, u16::from(!alone), &[]);
            }
        }
    }

    /// The size of every terminal, in the standard's order (see the crate's documentation).
    fn say_size(&mut self) {
        let (columns, rows) = self.shared.size();
        let size = [columns.to_le_bytes(), rows.to_le_bytes()].concat();
        for number in 0..self.ports.len() {
            if self.ports[number].console {
                self.say(number, event::RESIZE, 0, &size);
            }
        }
    }

    fn control_out(&mut self) {
        while let Some(chain) = self.queue_at(CONTROL_OUT).and_then(Queue::pop) {
            let mut bytes = [0; Control::LEN];
            // A message that is too short says nothing.
            if chain.reader().read_all(&mut bytes).is_ok() {
                self.hear(Control::parse(bytes));
            }
            if let Some(queue) = self.queue_at(CONTROL_OUT) {
                queue.complete(chain, 0);
            }
        }
        if let Some(queue) = self.queue_at(CONTROL_OUT) {
            queue.signal();
        }
        self.control_in();
    }

    fn hear(&mut self, message: Control) {
        let Control { port, event, value } = message;
        let number = port as usize;
        match event {
            event::DEVICE_READY => {
                self.shared.set_ready(value == 1);
                for number in 0..if value == 1 { self.ports.len() } else { 0 } {
                    self.say(number, event::PORT_ADD, 0, &[]);
                }
            }
            event::PORT_READY if value == 1 => self.introduce(number),
            event::PORT_OPEN => {
                let shared = self.shared.clone();
                if let (Some(port), Some(shared)) = (self.ports.get_mut(number), shared.ports.get(number)) {
                    let open = value == 1;
                    if std::mem::replace(&mut lock(shared).open, open) != open {
                        port.output.set_open(open);
                    }
                    self.deliver(number);
                }
            }
            _ => {}
        }
    }

    /// Say what a port is.
    fn introduce(&mut self, number: usize) {
        let Some(port) = self.ports.get(number) else { return };
        let (console, name) = (port.console, port.name.clone());
        if console {
            self.say(number, event::CONSOLE_PORT, 1, &[]);
            self.shared.take_resized();
            self.say_size();
        }
        if !name.is_empty() {
            self.say(number, event::PORT_NAME, 1, name.as_bytes());
        }
        let alone = self.shared.ports.get(number).is_some_and(|port| {
            let mut port = lock(port);
            port.alone_changed = false;
            port.alone
        });
        self.say(number, event::PORT_OPEN, u16::from(!alone), &[]);
    }
}

impl Handler for Work {
    fn queue(&mut self, queue: u16) {
        match role(queue) {
            Role::ToGuest(port) => self.deliver(port),
            Role::FromGuest(port) => self.collect(port),
            Role::ControlIn => self.control_in(),
            Role::ControlOut => self.control_out(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_numbered_as_the_standard_does() {
        for (port, queue) in [(0, 0), (1, 4), (2, 6), (30, 62)] {
            assert_eq!(receive_queue(port), queue);
            assert_eq!((role(queue), role(queue + 1)), (Role::ToGuest(port), Role::FromGuest(port)));
        }
        assert_eq!((role(2), role(3)), (Role::ControlIn, Role::ControlOut));
    }
}
