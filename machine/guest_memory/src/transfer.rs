//! Input and output straight between host files and guest RAM, and giving RAM
//! back to the host.
//!
//! **Marks.** Writers of guest RAM store first and look at the page's mark after
//! ([`crate::PageMarks`]). A system call that fills guest RAM is such a store: when
//! it has returned, all its bytes are in memory, and only then the marks are
//! looked at. Against somebody who marks code at that moment: they set the mark,
//! make every thread of the process pass a barrier (one that is inside a system
//! call too), then read the bytes. What the call had stored before that barrier
//! they see; of a call that stores after it, the look at the marks comes after the
//! mark was set, finds it, and makes their code stale. So nothing need be marked
//! before the call, and no lock is held during it.
// UNSAFE: hands pointers that `Mapping::at` has bounds-checked to system calls.
#![allow(unsafe_code, reason = "guest memory access")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use host_sys::{MAX_PIECES, RawPiece, Transfer};
use rustix::fs::{FallocateFlags, fallocate};

use crate::{GuestMemory, PAGE_SIZE, RamOffset};

/// Bytes that direct I/O may store beyond the count it answers: a block.
const BLOCK: usize = 4096;

impl GuestMemory {
    fn raw(&self, &(offset, len): &(RamOffset, usize)) -> RawPiece {
        RawPiece { iov_base: self.0.mapping.at(offset.0, len).cast(), iov_len: len }
    }

    /// Look at the marks of the first `len` bytes of a list.
    fn pieces_written(&self, pieces: &[(RamOffset, usize)], len: usize) -> bool {
        let (mut left, mut hit) = (len, false);
        for &(offset, size) in pieces {
            let n = size.min(left);
            if n == 0 {
                continue;
            }
            hit |= self.0.marks.written(offset.0, n as u64);
            left -= n;
        }
        hit
    }

    /// Fill pieces of RAM, behind `head` bytes of the caller's.
    fn fill_from(
        &self,
        file: BorrowedFd<'_>,
        what: Transfer,
        head: &mut [u8],
        to: &[(RamOffset, usize)],
    ) -> io::Result<usize> {
        let (first, to) = head_piece(head, to);
        let list: Vec<RawPiece> = first.into_iter().chain(to.iter().map(|p| self.raw(p))).collect();
        // SAFETY: `raw` has bounds-checked each piece against the mapping, which
        // lives as long as `self`; `head` is borrowed for the call.
        let result = unsafe { host_sys::transfer(file, what, &list) };
        self.host_filled(to, result.as_ref().ok().map(|n| n.saturating_sub(head.len())));
        result
    }

    /// Where pieces lie in this process, for calls to the host that others make:
    /// valid as long as the memory. Who fills them says so when the call has
    /// returned, by [`GuestMemory::host_filled`].
    ///
    /// # Panics
    /// When one leaves the memory: a bug of the caller.
    #[must_use]
    pub fn host_pieces(&self, pieces: &[(RamOffset, usize)]) -> Vec<RawPiece> {
        pieces.iter().map(|p| self.raw(p)).collect()
    }

    /// A call to the host that fills pieces has returned with a count of bytes; none:
    /// it has failed. The marks are looked at.
    pub fn host_filled(&self, pieces: &[(RamOffset, usize)], count: Option<usize>) {
        // Some may have been stored before it failed.
        let stored = count.map_or(usize::MAX, |n| n.next_multiple_of(BLOCK));
        self.pieces_written(pieces, stored);
    }

    fn drain_to(
        &self,
        file: BorrowedFd<'_>,
        what: Transfer,
        head: &[u8],
        from: &[(RamOffset, usize)],
    ) -> io::Result<usize> {
        let head = RawPiece { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        let first = (head.iov_len > 0).then_some(head);
        let room = MAX_PIECES - usize::from(first.is_some());
        let list: Vec<RawPiece> =
            first.into_iter().chain(from.iter().take(room).map(|p| self.raw(p))).collect();
        // SAFETY: as in `fill_from`; these transfers only read.
        unsafe { host_sys::transfer(file, what, &list) }
    }

    /// Read from a file's byte `offset` straight into RAM (preadv). Answers how many
    /// bytes there were: fewer than asked for at the file's end, or when `to` has
    /// more than 1024 pieces.
    ///
    /// # Errors
    /// What the host says; the bytes are undefined then.
    pub fn read_from(&self, file: impl AsFd, offset: u64, to: &[(RamOffset, usize)]) -> io::Result<usize> {
        self.fill_from(file.as_fd(), Transfer::ReadAt(offset), &mut [], to)
    }

    /// Write RAM straight to a file's byte `offset` (pwritev). Counts as
    /// [`GuestMemory::read_from`].
    ///
    /// # Errors
    /// What the host says.
    pub fn write_to(&self, file: impl AsFd, offset: u64, from: &[(RamOffset, usize)]) -> io::Result<usize> {
        self.drain_to(file.as_fd(), Transfer::WriteAt(offset), &[], from)
    }

    /// Read from a stream (readv), a packet of a tap device for example: first into
    /// `head`, then into RAM. The count includes both.
    ///
    /// # Errors
    /// What the host says.
    pub fn read_stream(
        &self,
        file: impl AsFd,
        head: &mut [u8],
        to: &[(RamOffset, usize)],
    ) -> io::Result<usize> {
        self.fill_from(file.as_fd(), Transfer::Read, head, to)
    }

    /// Write to a stream (writev): first `head`, then RAM.
    ///
    /// # Errors
    /// What the host says.
    pub fn write_stream(
        &self,
        file: impl AsFd,
        head: &[u8],
        from: &[(RamOffset, usize)],
    ) -> io::Result<usize> {
        self.drain_to(file.as_fd(), Transfer::Write, head, from)
    }

    /// Receive from a socket (recvmsg) without waiting; as [`GuestMemory::read_stream`].
    ///
    /// # Errors
    /// What the host says; `WouldBlock` when there is nothing.
    pub fn receive(
        &self,
        socket: impl AsFd,
        head: &mut [u8],
        to: &[(RamOffset, usize)],
    ) -> io::Result<usize> {
        self.fill_from(socket.as_fd(), Transfer::Receive, head, to)
    }

    /// Send to a socket (sendmsg) without waiting and without SIGPIPE; as
    /// [`GuestMemory::write_stream`].
    ///
    /// # Errors
    /// What the host says; `WouldBlock` when it takes nothing now.
    pub fn send(&self, socket: impl AsFd, head: &[u8], from: &[(RamOffset, usize)]) -> io::Result<usize> {
        self.drain_to(socket.as_fd(), Transfer::Send, head, from)
    }

    /// Give whole pages back to the host: they read as zeroes and take no memory
    /// until they are written again. Parts of pages at either end stay. Answers the
    /// bytes given back.
    ///
    /// # Errors
    /// What the host says.
    pub fn discard(&self, offset: RamOffset, len: u64) -> io::Result<u64> {
        let end = offset.0.saturating_add(len).min(self.backing_size()) / PAGE_SIZE * PAGE_SIZE;
        let start = offset.0.next_multiple_of(PAGE_SIZE);
        let Some(len) = end.checked_sub(start).filter(|&l| l > 0) else { return Ok(0) };
        fallocate(self.0.mapping.file(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, len)?;
        // Zeroes are a write as any other.
        self.0.marks.written(start, len);
        Ok(len)
    }
}

/// The caller's bytes as a piece, and how much of `to` still fits one call.
fn head_piece<'a>(
    head: &mut [u8],
    to: &'a [(RamOffset, usize)],
) -> (Option<RawPiece>, &'a [(RamOffset, usize)]) {
    let piece = RawPiece { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() };
    let first = (piece.iov_len > 0).then_some(piece);
    let room = MAX_PIECES - usize::from(first.is_some());
    (first, &to[..to.len().min(room)])
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn file(content: &[u8]) -> OwnedFd {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(rustix::io::pwrite(&file, content, 0).unwrap(), content.len());
        file
    }

    fn bytes(m: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        m.read_bytes(RamOffset(at), &mut bytes);
        bytes
    }

    #[test]
    fn a_file_laid_over_memory_is_read_and_written_or_kept_as_it_is() {
        use std::io::{Read, Seek};
        for shared in [true, false] {
            let m = GuestMemory::flat(0x5000).unwrap();
            m.write(RamOffset(0x1000), 1u8);
            let mut file = std::fs::File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
            std::io::Write::write_all(&mut file, &[7; 0x1800]).unwrap();
            m.overlay_file(RamOffset(0x1000), &file, 0x1800, shared).unwrap();
            let mut seen = [9; 0x4000];
            m.read_bytes(RamOffset(0), &mut seen);
            for (at, byte) in [(0xfff, 0), (0x1000, 7), (0x27ff, 7), (0x2800, 0), (0x3000, 0)] {
                assert_eq!(seen[at], byte, "{at:#x}");
            }
            m.write(RamOffset(0x1001), 8u8);
            m.discard(RamOffset(0), 0x5000).unwrap();
            assert_eq!(m.read::<u8>(RamOffset(0x1001)), 8, "not the machine's own to give back");
            file.rewind().unwrap();
            let mut start = [0; 2];
            file.read_exact(&mut start).unwrap();
            assert_eq!(start, [7, if shared { 8 } else { 7 }]);
        }
    }

    #[test]
    fn files_go_to_and_from_scattered_pieces() {
        let m = GuestMemory::flat(0x4000).unwrap();
        let f = file(b"0123456789");
        let pieces = [(RamOffset(0x10), 3), (RamOffset(0x1ffe), 4), (RamOffset(0x3000), 100)];
        assert_eq!(m.read_from(&f, 2, &pieces).unwrap(), 8, "to the file's end");
        assert_eq!((bytes(&m, 0x10, 4), bytes(&m, 0x1ffe, 4)), (b"234\0".to_vec(), b"5678".to_vec()));
        assert_eq!(bytes(&m, 0x3000, 2), b"9\0");
        assert_eq!(m.write_to(&f, 1, &pieces[..2]).unwrap(), 7);
        let mut all = [0; 10];
        rustix::io::pread(&f, &mut all, 0).unwrap();
        assert_eq!(&all, b"0234567889");
        assert!(m.read_from(&f, u64::MAX, &pieces).is_err());
    }

    #[test]
    fn streams_have_a_head_of_the_callers() {
        let m = GuestMemory::flat(0x2000).unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        m.write_bytes(RamOffset(0x100), b"frame");
        assert_eq!(m.write_stream(&write, b"head", &[(RamOffset(0x100), 5)]).unwrap(), 9);
        let mut head = [0; 4];
        assert_eq!(m.read_stream(&read, &mut head, &[(RamOffset(0x200), 9)]).unwrap(), 9);
        assert_eq!((&head, bytes(&m, 0x200, 5)), (b"head", b"frame".to_vec()));
        let (a, b) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let nothing = m.receive(&b, &mut [], &[(RamOffset(0), 9)]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(m.send(&a, b"x", &[(RamOffset(0x100), 5)]).unwrap(), 6);
        assert_eq!(m.receive(&b, &mut [], &[(RamOffset(0x300), 9)]).unwrap(), 6);
        assert_eq!(bytes(&m, 0x300, 6), b"xframe");
        drop(b);
        assert!(m.send(&a, b"x", &[]).is_err(), "an error, not a signal");
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_a_short_count() {
        let m = GuestMemory::flat(0x2000).unwrap();
        let f = file(&[7; 2000]);
        let pieces: Vec<_> = (0..2000).map(|i| (RamOffset(i), 1)).collect();
        assert_eq!(m.read_from(&f, 0, &pieces).unwrap(), MAX_PIECES);
        assert_eq!(bytes(&m, MAX_PIECES as u64 - 1, 2), [7, 0]);
    }

    #[test]
    fn what_the_host_stores_makes_code_stale_and_pages_dirty() {
        let m = GuestMemory::flat(0x8000).unwrap();
        let f = file(&[1; 0x3000]);
        let generation = m.marks().mark_code(RamOffset(0x2040), 8);
        m.marks().set_dirty_logging(true);
        m.read_from(&f, 0, &[(RamOffset(0x1000), 0x1000), (RamOffset(0x5000), 0x10)]).unwrap();
        assert_eq!(m.marks().code_generation(RamOffset(0x2040)), generation, "beside the code");
        assert_eq!(m.marks().take_dirty(), [1, 5]);
        m.read_from(&f, 0, &[(RamOffset(0x2000), 0x80)]).unwrap();
        assert_ne!(m.marks().code_generation(RamOffset(0x2040)), generation);
        assert_eq!(m.marks().take_dirty(), [2]);
        m.write_to(&f, 0, &[(RamOffset(0x3000), 0x1000)]).unwrap();
        assert!(m.marks().take_dirty().is_empty(), "reading RAM writes nothing");
    }

    #[test]
    fn discarded_pages_are_zero_take_nothing_and_hold_no_code() {
        let m = GuestMemory::flat(0x10000).unwrap();
        m.fill(RamOffset(0), 0x55u8, 0x10000);
        let generation = m.marks().mark_code(RamOffset(0x3000), 8);
        let before = m.resident();
        assert_eq!(m.discard(RamOffset(0x1800), 0x3000).unwrap(), 0x2000, "whole pages only");
        assert_eq!(before - m.resident(), 0x2000);
        assert_eq!(bytes(&m, 0x1fff, 2), [0x55, 0]);
        assert_eq!(bytes(&m, 0x3fff, 2), [0, 0x55]);
        assert_ne!(m.marks().code_generation(RamOffset(0x3000)), generation);
        assert_eq!(m.discard(RamOffset(0x10), 0x20).unwrap(), 0);
        assert_eq!(m.discard(RamOffset(0xf000), u64::MAX).unwrap(), 0x1000);
    }
}
