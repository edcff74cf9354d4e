//! One disk's contents into another.

use std::ops::ControlFlow;

use crate::read_only::LOOK_UPS;
use crate::{BOUNCE, Disk, DiskError};

/// Copy all blocks of `from` to the beginning of `to`, which must be new: what is
/// zeroes is left out, so that sparse images stay sparse. `progress` is told the
/// bytes done after each step, and may break off, which is then the answer. What was
/// copied is durable when this returns, unless it broke off.
///
/// # Errors
/// When `to` is smaller, or either disk fails.
pub fn copy(
    from: &dyn Disk,
    to: &dyn Disk,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DiskError> {
    let size = from.geometry().size;
    to.geometry().check(0, size)?;
    let mut buffer = vec![0; BOUNCE];
    let mut done = 0;
    while done < size {
        let zeroes = from.known_zeroes(done, size - done, &mut { LOOK_UPS })?.min(size - done);
        if zeroes > 0 {
            done += zeroes;
        } else {
            let n = (size - done).min(BOUNCE as u64);
            let piece = &mut buffer[..n as usize];
            from.read(done, piece)?;
            copy_piece(to, done, piece)?;
            done += n;
        }
        if progress(done).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    to.flush()?;
    Ok(ControlFlow::Continue(()))
}

/// Write the parts of a piece that are not zeroes.
fn copy_piece(to: &dyn Disk, at: u64, piece: &[u8]) -> Result<(), DiskError> {
    /// What file systems and images allocate at least.
    const UNIT: usize = 4096;
    let is_zero = |unit: &[u8]| unit.iter().all(|b| *b == 0);
    let mut start = None;
    for (i, unit) in piece.chunks(UNIT).enumerate() {
        match (is_zero(unit), start) {
            (false, None) => start = Some(i * UNIT),
            (true, Some(from)) => {
                to.write(at + from as u64, &piece[from..i * UNIT])?;
                start = None;
            }
            _ => {}
        }
    }
    match start {
        Some(from) => to.write(at + from as u64, &piece[from..]),
        None => Ok(()),
    }
}
