//! Keys to the guest, and the escape keys that are ours.

use std::io::Read;
use std::sync::Weak;
use std::time::Duration;

use board::{Board, MachineEvent, SerialSpec};
use guest_client::Size;

/// What the escape keys do, for `--help` and Ctrl-A h.
pub const KEYS: &str = "  \
Ctrl-A x  end the machine (status 130)
  Ctrl-A p  press the power button
  Ctrl-A a  send Ctrl-A to the guest
  Ctrl-A h  show these keys";

const ESCAPE: u8 = 0x01;
/// How long to wait before a full receive buffer is offered the rest again; a
/// small part of the time in which the guest empties it.
const RETRY: Duration = Duration::from_millis(50);

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// For the guest.
    Guest(u8),
    /// Nothing yet.
    Nothing,
    Quit,
    PowerButton,
    Help,
}

/// Recognises the escape keys in what is typed.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn key(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.escaped) {
            if byte == ESCAPE {
                self.escaped = true;
                return Key::Nothing;
            }
            return Key::Guest(byte);
        }
        match byte {
            b'x' | b'X' => Key::Quit,
            b'p' => Key::PowerButton,
            b'h' | b'?' => Key::Help,
            b'a' | ESCAPE => Key::Guest(ESCAPE),
            other => Key::Guest(other),
        }
    }
}

/// Where what is typed goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyboard {
    /// Serial port of this number, COM1 is 0.
    Serial(usize),
    /// The virtio console.
    Virtio,
}

impl Keyboard {
    /// The one of a machine's console on standard input and output, if it has any.
    pub fn of(board: &Board) -> Option<Keyboard> {
        if board.console().is_some() {
            return Some(Keyboard::Virtio);
        }
        board.spec().serial.iter().position(|s| *s == SerialSpec::Stdio).map(Keyboard::Serial)
    }

    /// Offer bytes; how many were taken.
    fn offer(self, board: &Board, bytes: &[u8]) -> usize {
        match (self, board.console()) {
            (Keyboard::Serial(port), _) => board.serial_input(port, bytes),
            (Keyboard::Virtio, Some(console)) => console.input(0, bytes),
            (Keyboard::Virtio, None) => bytes.len(),
        }
    }
}

/// Tell the virtio console the size of the terminal this process has, if any.
pub fn tell_size(board: &Board) {
    if let (Some(console), Some(Size { rows, columns })) = (board.console(), crate::exec::window_size()) {
        console.resize(columns, rows);
    }
}

/// Carry standard input to a keyboard until it ends; its end is not the
/// machine's. It holds input back until the guest receives. With `terminal`
/// the escape keys work; else every byte is the guest's.
pub fn carry_input(board: &Weak<Board>, to: Keyboard, terminal: bool) {
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    // It holds up nobody but this thread.
    let always = || true;
    loop {
        let n = match std::io::stdin().read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if !terminal {
            send(board, to, &buffer[..n], &always);
            continue;
        }
        let Some(machine) = board.upgrade() else { return };
        let mut typed = Vec::with_capacity(n);
        for byte in &buffer[..n] {
            match keys.key(*byte) {
                Key::Guest(b) => typed.push(b),
                Key::Nothing => {}
                Key::Quit => return machine.events().post(MachineEvent::Stop),
                Key::PowerButton => machine.press_power_button(),
                Key::Help => eprint!("\r\n{}\r\n", KEYS.replace('\n', "\r\n")),
            }
        }
        drop(machine);
        send(board, to, &typed, &always);
    }
}

/// Offer bytes until all are taken or `goes_on` says no: a guest that does not read
/// holds back its own input, nothing else. The machine may end meanwhile.
pub fn send(board: &Weak<Board>, to: Keyboard, mut bytes: &[u8], goes_on: &dyn Fn() -> bool) {
    loop {
        let Some(machine) = board.upgrade() else { return };
        bytes = &bytes[to.offer(&machine, bytes).min(bytes.len())..];
        drop(machine);
        if bytes.is_empty() || !goes_on() {
            return;
        }
        std::thread::sleep(RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_after_ctrl_a_is_ours() {
        let mut keys = Keys::default();
        let seen: Vec<_> = b"x\x01xp\x01p\x01h\x01\x01\x01a\x01z".iter().map(|b| keys.key(*b)).collect();
        use Key::*;
        let expect = [
            Guest(b'x'),
            Nothing,
            Quit,
            Guest(b'p'),
            Nothing,
            PowerButton,
            Nothing,
            Help,
            Nothing,
            Guest(1),
            Nothing,
            Guest(1),
            Nothing,
            Guest(b'z'),
        ];
        assert_eq!(seen, expect);
    }
}
