//! The 16550A serial port (TL16C550 data sheet).
//!
//! Our own rather than a library's, since it has FIFO control, modem status with
//! deltas, the OUT2 interrupt gate and restorable state.

mod output;
mod receiver;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::{Clock, Device, IrqLine, Nanos, PortIo, Timed};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::byte_ports;
pub use output::{BufferedOutput, SerialOutput};
use receiver::{CAPACITY, FIFO, Line, Receiver};

const NAME: &str = "serial";

const IER_RECEIVED: u8 = 1 << 0;
const IER_EMPTY: u8 = 1 << 1;
const IER_LINE: u8 = 1 << 2;
const IER_MODEM: u8 = 1 << 3;

const IIR_NONE: u8 = 0x01;
const IIR_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVE: u8 = 1 << 1;
/// Enable, DMA mode, trigger level; the clear bits reset themselves.
const FCR_KEPT: u8 = 0xc9;

const LCR_DIVISOR: u8 = 1 << 7;

const MCR_WRITABLE: u8 = 0x1f;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;

const LSR_DATA: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
/// Transmitter holding register and transmitter empty: bytes leave at once.
const LSR_EMPTY: u8 = 0x60;

/// Clear to send, data set ready, carrier detect: a cable with someone at the other end.
const MSR_CONNECTED: u8 = 0xb0;
const MSR_RING: u8 = 1 << 6;

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    empty_pending: bool,
    received: Vec<u8>,
    /// How many of `received` are from loopback.
    looped: u8,
    input: Vec<u8>,
    uses_rts: bool,
    polls: bool,
}

struct Chip {
    // Runtime glue.
    clock: Clock,
    irq: IrqLine,
    output: Box<dyn SerialOutput>,
    // Volatile state.
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Lines and deltas.
    msr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The transmitter-empty interrupt has not been seen yet.
    empty_pending: bool,
    receiver: Receiver,
}

impl Chip {
    fn reset(&mut self) {
        self.ier = 0;
        self.fcr = 0;
        self.lcr = 0;
        self.mcr = 0;
        self.msr = MSR_CONNECTED;
        self.scratch = 0;
        self.divisor = 12;
        self.overrun = false;
        self.empty_pending = false;
        self.receiver.reset();
        self.update();
    }

    fn fifos(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn line(&self) -> Line {
        Line {
            fifo: self.fifos(),
            interrupt: self.ier & IER_RECEIVED != 0,
            rts: self.mcr & MCR_RTS != 0,
            looped: self.mcr & MCR_LOOP != 0,
        }
    }

    /// Receive what may come now.
    fn refill(&mut self) {
        self.receiver.refill(self.line(), self.clock.now());
    }

    fn trigger(&self) -> usize {
        match self.fcr >> 6 {
            _ if !self.fifos() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// Interrupt identification without the FIFO bits, by priority. Characters
    /// below the trigger level time out at once: no more are on the way.
    fn identification(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.overrun {
            IIR_LINE
        } else if self.ier & IER_RECEIVED != 0 && self.receiver.fifo.len() >= self.trigger() {
            IIR_RECEIVED
        } else if self.ier & IER_RECEIVED != 0 && !self.receiver.fifo.is_empty() {
            IIR_TIMEOUT
        } else if self.ier & IER_EMPTY != 0 && self.empty_pending {
            IIR_EMPTY
        } else if self.ier & IER_MODEM != 0 && self.msr & 0xf != 0 {
            0
        } else {
            IIR_NONE
        }
    }

    fn update(&mut self) {
        // A PC connects the interrupt through OUT2.
        self.irq.set(self.mcr & MCR_OUT2 != 0 && self.identification() != IIR_NONE);
    }

    fn read(&mut self, offset: u16) -> u8 {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        match offset {
            5 => self.receiver.status_read(),
            _ => self.receiver.other_access(),
        }
        let value = match offset {
            0 if divisor => self.divisor as u8,
            1 if divisor => (self.divisor >> 8) as u8,
            0 => self.receiver.take(),
            1 => self.ier,
            2 => {
                let id = self.identification();
                if id == IIR_EMPTY {
                    self.empty_pending = false;
                }
                id | if self.fifos() { IIR_FIFO } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let data = if self.receiver.fifo.is_empty() { 0 } else { LSR_DATA };
                let overrun = if std::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
                LSR_EMPTY | data | overrun
            }
            6 => {
                let value = self.msr;
                self.msr &= 0xf0;
                value
            }
            7 => self.scratch,
            _ => 0xff,
        };
        if matches!(offset, 0 | 5) {
            self.refill();
        }
        self.update();
        value
    }

    fn write(&mut self, offset: u16, value: u8) {
        let divisor = self.lcr & LCR_DIVISOR != 0;
        self.receiver.other_access();
        match offset {
            0 if divisor => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if divisor => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            0 => self.transmit(value),
            1 => {
                let newly = value & !self.ier;
                self.ier = value & 0x0f;
                // Enabling it while the transmitter is empty, as always here, interrupts.
                self.empty_pending |= newly & IER_EMPTY != 0;
                self.receiver.set_up();
                self.refill();
            }
            2 => {
                if (value ^ self.fcr) & FCR_ENABLE != 0 || value & FCR_CLEAR_RECEIVE != 0 {
                    self.receiver.clear();
                    self.receiver.set_up();
                }
                self.fcr = if value & FCR_ENABLE != 0 { value & FCR_KEPT } else { 0 };
                self.refill();
            }
            3 => self.lcr = value,
            4 => {
                if value & !self.mcr & MCR_LOOP != 0 {
                    self.receiver.clear();
                }
                self.mcr = value & MCR_WRITABLE;
                self.receiver.uses_rts |= value & (MCR_LOOP | MCR_RTS) == MCR_RTS;
                self.set_modem_lines();
                self.refill();
            }
            7 => self.scratch = value,
            _ => {}
        }
        self.update();
    }

    fn transmit(&mut self, value: u8) {
        if self.mcr & MCR_LOOP == 0 {
            self.output.put(&[value]);
        } else if !self.receiver.send_back(self.line(), value) {
            self.overrun = true;
        }
        self.empty_pending = true;
    }

    /// Loopback wires the modem outputs to the inputs; changes set the deltas.
    fn set_modem_lines(&mut self) {
        let m = self.mcr;
        let lines = match m & MCR_LOOP {
            0 => MSR_CONNECTED,
            // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to CD.
            _ => (m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4,
        };
        let changed = lines ^ self.msr;
        // Ring indicator counts when it ends.
        let ring_ended = changed & self.msr & MSR_RING;
        let deltas = (changed & !MSR_RING | ring_ended) >> 4;
        self.msr = lines | self.msr & 0xf | deltas;
    }
}

/// A serial port. `input()` gives a handle to type at it.
pub struct Serial(Arc<Mutex<Chip>>);

/// Puts bytes on a port's line, from any thread.
#[derive(Clone)]
pub struct SerialInput(Arc<Mutex<Chip>>);

fn lock(chip: &Mutex<Chip>) -> MutexGuard<'_, Chip> {
    chip.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Serial {
    /// First port of COM1 (IRQ 4).
    pub const COM1: u16 = 0x3f8;
    /// First port of COM2 (IRQ 3).
    pub const COM2: u16 = 0x2f8;
    /// First port of COM3 (IRQ 4).
    pub const COM3: u16 = 0x3e8;
    /// First port of COM4 (IRQ 3).
    pub const COM4: u16 = 0x2e8;
    /// Count of ports.
    pub const PORT_COUNT: u16 = 8;

    /// A port after power-up that writes to `output`.
    pub fn new(clock: Clock, irq: IrqLine, output: Box<dyn SerialOutput>) -> Self {
        Serial(Arc::new(Mutex::new(Chip {
            clock,
            irq,
            output,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr: MSR_CONNECTED,
            scratch: 0,
            divisor: 12,
            overrun: false,
            empty_pending: false,
            receiver: Receiver::default(),
        })))
    }

    /// The other end of the line.
    pub fn input(&self) -> SerialInput {
        SerialInput(self.0.clone())
    }
}

impl SerialInput {
    /// Most bytes that wait for the guest.
    pub const CAPACITY: usize = CAPACITY;

    /// Send bytes to the guest. Answers how many were taken: fewer when the
    /// guest has not read what waits; offer the rest later. The port's deadline
    /// may have changed.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut chip = lock(&self.0);
        let n = chip.receiver.offer(bytes);
        chip.refill();
        chip.update();
        n
    }
}

impl Device for Serial {
    fn name(&self) -> &'static str {
        NAME
    }
    /// What waits on the line stays there.
    fn reset(&mut self) {
        lock(&self.0).reset();
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl Timed for Serial {
    fn next_deadline(&self) -> Option<Nanos> {
        let chip = lock(&self.0);
        chip.receiver.next_deadline(chip.line())
    }

    fn expire(&mut self, now: Nanos) {
        let mut chip = lock(&self.0);
        let line = chip.line();
        chip.receiver.refill(line, now);
        chip.update();
    }
}

impl PortIo for Serial {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let mut chip = lock(&self.0);
        byte_ports::read(offset, size, |o| chip.read(o))
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let mut chip = lock(&self.0);
        byte_ports::write(offset, size, value, |o, v| chip.write(o, v));
    }
}

impl Saved for Serial {
    type State = SerialState;
    const VERSION: u16 = 2;

    fn save(&self) -> SerialState {
        let chip = lock(&self.0);
        let Chip {
            clock: _,
            irq: _,
            output: _,
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scratch,
            divisor,
            overrun,
            empty_pending,
            receiver,
        } = &*chip;
        SerialState {
            ier: *ier,
            fcr: *fcr,
            lcr: *lcr,
            mcr: *mcr,
            msr: *msr,
            scratch: *scratch,
            divisor: *divisor,
            overrun: *overrun,
            empty_pending: *empty_pending,
            received: receiver.fifo.iter().copied().collect(),
            looped: receiver.looped as u8,
            input: receiver.waiting.iter().copied().collect(),
            uses_rts: receiver.uses_rts,
            polls: receiver.polls,
        }
    }

    fn restore(&mut self, state: &SerialState) -> Result<(), StateError> {
        let SerialState {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scratch,
            divisor,
            overrun,
            empty_pending,
            received,
            looped,
            input,
            uses_rts,
            polls,
        } = state;
        StateError::check(ier & !0x0f == 0, NAME, "ier", *ier, "bits 3-0")?;
        StateError::check(fcr & !FCR_KEPT == 0, NAME, "fcr", *fcr, "bits 7, 6, 3, 0")?;
        StateError::check(mcr & !MCR_WRITABLE == 0, NAME, "mcr", *mcr, "bits 4-0")?;
        let most = if fcr & FCR_ENABLE != 0 { FIFO } else { 1 };
        StateError::check(
            received.len() <= most,
            NAME,
            "received",
            received.len() as u64,
            "the FIFO's size",
        )?;
        StateError::check(
            usize::from(*looped) <= received.len(),
            NAME,
            "looped",
            *looped,
            "the count of received bytes",
        )?;
        StateError::check(input.len() <= CAPACITY, NAME, "input", input.len() as u64, "65536")?;
        let mut chip = lock(&self.0);
        chip.ier = *ier;
        chip.fcr = *fcr;
        chip.lcr = *lcr;
        chip.mcr = *mcr;
        chip.msr = *msr;
        chip.scratch = *scratch;
        chip.divisor = *divisor;
        chip.overrun = *overrun;
        chip.empty_pending = *empty_pending;
        chip.receiver = Receiver {
            fifo: received.iter().copied().collect(),
            looped: usize::from(*looped),
            waiting: input.iter().copied().collect(),
            uses_rts: *uses_rts,
            polls: *polls,
            ..Receiver::default()
        };
        chip.update();
        Ok(())
    }
}
