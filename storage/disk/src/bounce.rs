//! Guest memory by way of a buffer, for disks that cannot reach it themselves.

use guest_memory::{GuestMemory, RamOffset};

use crate::{Disk, DiskError, Segment, total_len};

/// Most bytes of a buffer between a disk and guest memory: bounds the host's
/// memory, whatever the length of a guest's request.
pub const BOUNCE: usize = 256 << 10;

/// Run `step` over pieces of at most [`BOUNCE`] bytes that never cross segments'
/// total order: (disk offset, segments of the piece, its bytes).
fn pieces(
    offset: u64,
    segments: &[Segment],
    mut step: impl FnMut(u64, &[Segment], usize) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let (mut at, mut len) = (offset, 0usize);
    let mut piece: Vec<Segment> = Vec::new();
    for &(RamOffset(mut from), mut rest) in segments {
        while rest > 0 {
            let n = rest.min(BOUNCE - len);
            piece.push((RamOffset(from), n));
            (from, rest, len) = (from + n as u64, rest - n, len + n);
            if len == BOUNCE {
                step(at, &piece, len)?;
                at += len as u64;
                piece.clear();
                len = 0;
            }
        }
    }
    if len > 0 { step(at, &piece, len) } else { Ok(()) }
}

fn buffer(segments: &[Segment]) -> Vec<u8> {
    vec![0; total_len(segments).min(BOUNCE as u64) as usize]
}

/// Read into guest memory.
pub fn read(
    disk: &(impl Disk + ?Sized),
    offset: u64,
    memory: &GuestMemory,
    to: &[Segment],
) -> Result<(), DiskError> {
    disk.geometry().check(offset, total_len(to))?;
    let mut buffer = buffer(to);
    pieces(offset, to, |at, piece, len| {
        let bytes = &mut buffer[..len];
        disk.read(at, bytes)?;
        let mut rest: &[u8] = bytes;
        for &(to, n) in piece {
            let (head, tail) = rest.split_at(n);
            memory.write_bytes(to, head);
            rest = tail;
        }
        Ok(())
    })
}

/// Write from guest memory.
pub fn write(
    disk: &(impl Disk + ?Sized),
    offset: u64,
    memory: &GuestMemory,
    from: &[Segment],
) -> Result<(), DiskError> {
    disk.geometry().check(offset, total_len(from))?;
    let mut buffer = buffer(from);
    pieces(offset, from, |at, piece, len| {
        let bytes = &mut buffer[..len];
        let mut rest: &mut [u8] = bytes;
        for &(from, n) in piece {
            let (head, tail) = rest.split_at_mut(n);
            memory.read_bytes(from, head);
            rest = tail;
        }
        disk.write(at, bytes)
    })
}
