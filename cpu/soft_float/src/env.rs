//! What an operation depends on beyond its operands, and what it reports.

/// Exception bits, as both MXCSR and the x87 status word have them
/// (SDM volume 1, 8.1.3.3 and 10.2.3.1).
pub mod exception {
    /// Invalid operation.
    pub const IE: u8 = 1 << 0;
    /// Denormal operand.
    pub const DE: u8 = 1 << 1;
    /// Divide by zero.
    pub const ZE: u8 = 1 << 2;
    /// Overflow.
    pub const OE: u8 = 1 << 3;
    /// Underflow.
    pub const UE: u8 = 1 << 4;
    /// Precision (inexact).
    pub const PE: u8 = 1 << 5;
    /// All six.
    pub const ALL: u8 = 0x3f;
    /// Those detected before anything is computed. If one of them is unmasked
    /// the operation does not take place and reports none of the others.
    pub const BEFORE: u8 = IE | DE | ZE;
}

/// Rounding control, numbered as the RC fields of MXCSR and the x87 control word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest = 0,
    /// Toward minus infinity.
    Down = 1,
    /// Toward plus infinity.
    Up = 2,
    /// Toward zero.
    Zero = 3,
}

impl Rounding {
    /// From the two bits of an RC field; higher bits are ignored.
    pub fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Zero,
        }
    }
}

/// Which unit's rules apply where the two differ: NaN selection, the response
/// to unmasked overflow and underflow, precision control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// SSE and AVX.
    Sse,
    /// x87.
    X87,
}

/// Controls in, exception flags out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Env {
    /// Rounding control.
    pub rounding: Rounding,
    /// Significand bits of x87 register results: 24, 53 or 64.
    pub precision: u32,
    /// Whose rules apply.
    pub unit: Unit,
    /// Masked exceptions ([`exception`] bits).
    pub masks: u8,
    /// Exceptions raised by the operations since the environment was made.
    pub flags: u8,
    /// Exceptions of earlier steps of an instruction that takes several
    /// ([`Env::next_step`]).
    pub completed: u8,
    /// Exceptions that were already recorded before; raising them again
    /// changes nothing that software can see while they are masked.
    pub sticky: u8,
    /// Denormal operands are zeros (MXCSR.DAZ).
    pub daz: bool,
    /// A masked underflow gives zero (MXCSR.FTZ).
    pub ftz: bool,
    /// The last inexact result was rounded away from zero (x87 C1).
    pub rounded_up: bool,
}

impl Env {
    /// SSE's environment for an MXCSR value.
    pub fn sse(mxcsr: u32) -> Self {
        Env {
            rounding: Rounding::from_bits(mxcsr >> 13),
            precision: 64,
            unit: Unit::Sse,
            masks: (mxcsr >> 7) as u8 & exception::ALL,
            flags: 0,
            completed: 0,
            sticky: mxcsr as u8 & exception::ALL,
            daz: mxcsr & 1 << 6 != 0,
            ftz: mxcsr & 1 << 15 != 0,
            rounded_up: false,
        }
    }

    /// The x87's environment for a control word. The reserved precision
    /// encoding 01 acts as 64 bits.
    pub fn x87(control: u16) -> Self {
        Env {
            rounding: Rounding::from_bits(u32::from(control) >> 10),
            precision: match control >> 8 & 3 {
                0 => 24,
                2 => 53,
                _ => 64,
            },
            unit: Unit::X87,
            masks: control as u8 & exception::ALL,
            flags: 0,
            completed: 0,
            sticky: 0,
            daz: false,
            ftz: false,
            rounded_up: false,
        }
    }

    /// Record exceptions.
    #[inline(always)]
    pub fn raise(&mut self, exceptions: u8) {
        self.flags |= exceptions;
    }

    /// True if any of `exceptions` is unmasked.
    #[inline(always)]
    pub fn unmasked(&self, exceptions: u8) -> bool {
        exceptions & !self.masks != 0
    }

    /// The flags as the processor reports them: an unmasked exception found
    /// before the computation hides those the computation would have had.
    pub fn reported(&self) -> u8 {
        let step = if self.unmasked(self.flags & exception::BEFORE) {
            self.flags & exception::BEFORE
        } else {
            self.flags
        };
        self.completed | step
    }

    /// End one step of an instruction that computes on its own intermediate
    /// results. Returns false if the step raised an unmasked exception, so that
    /// no further one takes place.
    pub fn next_step(&mut self) -> bool {
        if self.unmasked(self.flags) {
            return false;
        }
        self.completed |= std::mem::take(&mut self.flags);
        true
    }

    pub(crate) fn inexact(&mut self, rounded_up: bool) {
        self.raise(exception::PE);
        self.rounded_up = rounded_up;
    }
}
