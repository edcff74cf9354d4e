//! FNSTENV, FLDENV, FNSAVE, FRSTOR in their 16- and 32-bit, protected- and
//! real-mode images (SDM volume 1, 8.1.10).

use iced_x86::Code;
use x86_semantics::x87::{self, F80, exception, status};

use crate::cpu::{Cpu, Privilege, Step, Stop};
use crate::insn::{Handler, Insn};
use crate::memory::Intent;

/// Bytes of the eight registers in FNSAVE's image.
const REGISTERS: usize = 80;
/// Largest image.
const MAX: usize = 108;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fnstenv_m14byte => store_environment::<2>,
        Code::Fnstenv_m28byte => store_environment::<4>,
        Code::Fldenv_m14byte => load_environment::<2>,
        Code::Fldenv_m28byte => load_environment::<4>,
        Code::Fnsave_m94byte => save::<2>,
        Code::Fnsave_m108byte => save::<4>,
        Code::Frstor_m94byte => restore::<2>,
        Code::Frstor_m108byte => restore::<4>,
        _ => return None,
    })
}

/// The seven fields of an environment; `W` is the field width in bytes.
fn fields<const W: usize>(cpu: &Cpu) -> [u32; 7] {
    let f = &cpu.fpu;
    let tags = (0..8).fold(0, |t, n| t | u32::from(x87::full_tag(f.regs[n], f.ftw >> n & 1 == 0)) << (2 * n));
    let (fip, fdp) = (f.fip as u32, f.fdp as u32);
    let (control, fsw, fop) = (u32::from(f.fcw), u32::from(f.fsw), u32::from(f.fop));
    // Upper halves of 16-bit fields are stored as ones.
    let ones = if W == 4 { 0xffff_0000 } else { 0 };
    let words = [control | ones, fsw | ones, tags | ones];
    let pointers = match (W, cpu.protected() && !cpu.v86()) {
        (4, true) => [fip, u32::from(f.fcs) | fop << 16, fdp, u32::from(f.fds) | ones],
        (_, true) => [fip, f.fcs.into(), fdp, f.fds.into()],
        (_, false) => {
            // Linear addresses, split.
            let ip = fip.wrapping_add(u32::from(f.fcs) << 4);
            let dp = fdp.wrapping_add(u32::from(f.fds) << 4);
            let high = |v: u32| v >> 16 << 12;
            [ip & 0xffff | ones, high(ip) | fop, dp & 0xffff | ones, high(dp)]
        }
    };
    [words[0], words[1], words[2], pointers[0], pointers[1], pointers[2], pointers[3]]
}

fn set_fields<const W: usize>(cpu: &mut Cpu, v: [u32; 7]) {
    let tags = v[2];
    cpu.fpu.ftw = (0..8).fold(0, |t, n| t | u8::from(tags >> (2 * n) & 3 != 3) << n);
    cpu.fpu.fsw = v[1] as u16;
    let (low_ip, high_ip, low_dp, high_dp) = (v[3], v[4], v[5], v[6]);
    if cpu.protected() && !cpu.v86() {
        cpu.fpu.fip = low_ip.into();
        cpu.fpu.fcs = high_ip as u16;
        if W == 4 {
            cpu.fpu.fop = (high_ip >> 16) as u16 & 0x7ff;
        }
        cpu.fpu.fdp = low_dp.into();
        cpu.fpu.fds = high_dp as u16;
    } else {
        let join = |low: u32, high: u32| u64::from(low & 0xffff | high >> 12 << 16);
        cpu.fpu.fip = join(low_ip, high_ip);
        cpu.fpu.fdp = join(low_dp, high_dp);
        cpu.fpu.fop = high_ip as u16 & 0x7ff;
        cpu.fpu.fcs = 0;
        cpu.fpu.fds = 0;
    }
    cpu.set_control_word(v[0] as u16);
}

fn write_fields<const W: usize>(cpu: &Cpu, image: &mut [u8]) {
    for (to, v) in image.chunks_exact_mut(W).zip(fields::<W>(cpu)) {
        to.copy_from_slice(&v.to_le_bytes()[..W]);
    }
}

fn read_fields<const W: usize>(cpu: &mut Cpu, i: &Insn) -> Result<[u32; 7], Stop> {
    let mut v = [0; 7];
    for (n, field) in v.iter_mut().enumerate() {
        let at = (n * W) as u64;
        *field = if W == 2 { u32::from(cpu.load_at::<u16>(i, at)?) } else { cpu.load_at(i, at)? };
    }
    Ok(v)
}

fn store_environment<const W: usize>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_available()?;
    let mut image = [0; MAX];
    write_fields::<W>(cpu, &mut image);
    cpu.image_aligned::<W>(i, 7 * W, Intent::Write)?;
    cpu.store_image(i, &image[..7 * W])?;
    // All exceptions are masked afterwards.
    cpu.fpu.fcw |= u16::from(exception::ALL);
    cpu.fpu.fsw &= !(status::ES | status::B);
    Ok(())
}

fn load_environment<const W: usize>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.image_aligned::<W>(i, 7 * W, Intent::Read)?;
    let v = cpu.in_pieces(|cpu| read_fields::<W>(cpu, i))?;
    set_fields::<W>(cpu, v);
    Ok(())
}

fn save<const W: usize>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_available()?;
    let mut image = [0; MAX];
    write_fields::<W>(cpu, &mut image);
    let length = 7 * W + REGISTERS;
    for (n, to) in image[7 * W..length].chunks_exact_mut(10).enumerate() {
        let v = cpu.st(n as u8);
        to[..8].copy_from_slice(&v.significand.to_le_bytes());
        to[8..].copy_from_slice(&v.sign_exponent.to_le_bytes());
    }
    cpu.image_aligned::<W>(i, length, Intent::Write)?;
    cpu.store_image(i, &image[..length])?;
    cpu.initialize_fpu();
    Ok(())
}

fn restore<const W: usize>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.image_aligned::<W>(i, 7 * W + REGISTERS, Intent::Read)?;
    let mut registers = [F80::default(); 8];
    let v = cpu.in_pieces(|cpu| {
        let v = read_fields::<W>(cpu, i)?;
        for (n, r) in registers.iter_mut().enumerate() {
            let at = (7 * W + 10 * n) as u64;
            *r = F80 { significand: cpu.load_at(i, at)?, sign_exponent: cpu.load_at(i, at + 8)? };
        }
        Ok(v)
    })?;
    set_fields::<W>(cpu, v);
    for (n, r) in registers.into_iter().enumerate() {
        let physical = cpu.st_number(n as u8);
        cpu.fpu.regs[physical] = r;
    }
    Ok(())
}

impl Cpu {
    /// #AC unless an image of `length` bytes starts at a multiple of `W` (its fields' width),
    /// where alignment is checked (SDM volume 3, 6.15, "Alignment Check Exception").
    pub(super) fn image_aligned<const W: usize>(&mut self, i: &Insn, length: usize, intent: Intent) -> Step {
        if !self.alignment_checks {
            return Ok(());
        }
        let offset = self.effective_address(i);
        let linear = self.segment_address(i.seg, offset, length as u64, intent == Intent::Write)?;
        self.check_alignment(linear, W as u64, intent)
    }

    /// Store `bytes` (at most one page) at the memory operand: all or, on a
    /// fault, nothing.
    pub(super) fn store_image(&mut self, i: &Insn, bytes: &[u8]) -> Step {
        let offset = self.effective_address(i);
        let length = bytes.len() as u64;
        let linear = self.segment_address(i.seg, offset, length, true)?;
        self.probe_write(linear, length, Privilege::Current)?;
        self.in_pieces(|cpu| {
            let mut at = 0;
            for chunk in bytes.chunks(8) {
                match <[u8; 8]>::try_from(chunk) {
                    Ok(v) => cpu.store_at(i, at, u64::from_le_bytes(v))?,
                    Err(_) => {
                        for (n, &b) in chunk.iter().enumerate() {
                            cpu.store_at(i, at + n as u64, b)?;
                        }
                    }
                }
                at += chunk.len() as u64;
            }
            Ok(())
        })
    }
}
