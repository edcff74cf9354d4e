//! A port that writes what passes to a file, for tcpdump and its like.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::{Capabilities, FrameSink, MAX_FRAME, Offload, Offloads, Port};

/// Microseconds, this machine's byte order (pcap-savefile(5)).
const MAGIC: u32 = 0xa1b2_c3d4;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// A capture file that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the capture file {}: {cause}; give a path that can be written", path.display())]
pub struct CaptureError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// The file; shared by the ports of one device.
struct Pcap {
    to: BufWriter<File>,
    /// After the first error nothing more is written: a full disk is no reason to stop a machine.
    failed: bool,
}

impl Pcap {
    fn write(&mut self, parts: &[&[u8]]) {
        if !self.failed {
            self.failed = self.record(parts).is_err();
        }
    }

    fn record(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let length: usize = parts.iter().map(|p| p.len()).sum();
        let length = u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes();
        // The file format ends in 2106.
        self.to.write_all(&(since.as_secs() as u32).to_ne_bytes())?;
        self.to.write_all(&since.subsec_micros().to_ne_bytes())?;
        self.to.write_all(&length)?;
        self.to.write_all(&length)?;
        parts.iter().try_for_each(|p| self.to.write_all(p))
    }

    /// What was captured is in the file when the port has nothing more to do.
    fn flush(&mut self) {
        if !self.failed {
            self.failed = self.to.flush().is_err();
        }
    }
}

/// A port that writes what passes to a pcap file.
///
/// Frames are written as they pass: one that is still to be cut into segments is
/// one record, and a checksum left to the receiver is not yet made.
pub struct Capture {
    inner: Box<dyn Port>,
    pcap: Arc<Mutex<Pcap>>,
}

impl Capture {
    /// Put a capture before each of a device's ports.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn wrap(ports: Vec<Box<dyn Port>>, path: &Path) -> Result<Vec<Box<dyn Port>>, CaptureError> {
        let start = || -> io::Result<Pcap> {
            let mut to = BufWriter::with_capacity(MAX_FRAME, File::create(path)?);
            to.write_all(&MAGIC.to_ne_bytes())?;
            // Version 2.4, then two fields that are always 0.
            to.write_all(&[2u16, 4].map(u16::to_ne_bytes).concat())?;
            to.write_all(&[0; 8])?;
            to.write_all(&(MAX_FRAME as u32).to_ne_bytes())?;
            to.write_all(&ETHERNET.to_ne_bytes())?;
            to.flush()?;
            Ok(Pcap { to, failed: false })
        };
        let pcap = start().map_err(|cause| CaptureError { path: path.to_path_buf(), cause })?;
        let pcap = Arc::new(Mutex::new(pcap));
        let wrap = |inner| Box::new(Capture { inner, pcap: pcap.clone() }) as Box<dyn Port>;
        Ok(ports.into_iter().map(wrap).collect())
    }
}

impl Port for Capture {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn set_receiver(&mut self, takes: Offloads) {
        self.inner.set_receiver(takes);
    }

    fn send(&mut self, frame: &[u8], offload: &Offload) {
        self.pcap.lock().unwrap_or_else(PoisonError::into_inner).write(&[frame]);
        self.inner.send(frame, offload);
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) {
        self.inner.receive(&mut Tee { sink, pcap: &self.pcap });
        self.pcap.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.inner.ready_fd()
    }

    fn set_active(&mut self, active: bool) {
        self.inner.set_active(active);
    }

    fn reset(&mut self) {
        self.inner.reset();
    }
}

/// A sink that is watched.
struct Tee<'a> {
    sink: &'a mut dyn FrameSink,
    pcap: &'a Mutex<Pcap>,
}

impl FrameSink for Tee<'_> {
    fn room(&mut self) -> bool {
        self.sink.room()
    }

    fn take(&mut self, parts: &[&[u8]], offload: &Offload) {
        self.pcap.lock().unwrap_or_else(PoisonError::into_inner).write(parts);
        self.sink.take(parts, offload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Answers each frame with itself.
    struct Echo(Vec<Vec<u8>>, File);

    impl Port for Echo {
        fn capabilities(&self) -> Capabilities {
            Capabilities { accepts: Offloads::NONE, gives: Offloads::NONE, mtu: 1500 }
        }
        fn set_receiver(&mut self, _takes: Offloads) {}
        fn send(&mut self, frame: &[u8], _offload: &Offload) {
            self.0.push(frame.to_vec());
        }
        fn receive(&mut self, sink: &mut dyn FrameSink) {
            for frame in self.0.drain(..) {
                let (a, b) = frame.split_at(frame.len() / 2);
                sink.take(&[a, b], &Offload::NONE);
            }
        }
        fn ready_fd(&self) -> BorrowedFd<'_> {
            self.1.as_fd()
        }
    }

    struct Collect(Vec<Vec<u8>>);

    impl FrameSink for Collect {
        fn room(&mut self) -> bool {
            true
        }
        fn take(&mut self, parts: &[&[u8]], _offload: &Offload) {
            self.0.push(parts.concat());
        }
    }

    #[test]
    fn what_passes_is_in_the_file_in_order() {
        let path = std::env::temp_dir().join(format!("strata-capture-{}.pcap", std::process::id()));
        let echo = Box::new(Echo(Vec::new(), File::open("/dev/null").unwrap()));
        let mut ports = Capture::wrap(vec![echo], &path).unwrap();
        ports[0].send(&[1; 60], &Offload::NONE);
        let mut got = Collect(Vec::new());
        ports[0].receive(&mut got);
        assert_eq!(got.0, [vec![1; 60]]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 2 * (16 + 60));
        assert_eq!(bytes[..4], MAGIC.to_ne_bytes());
        let at = |i: usize| u32::from_ne_bytes(bytes[i..i + 4].try_into().unwrap());
        assert_eq!((at(20), at(32), at(36)), (ETHERNET, 60, 60));
        assert_eq!(bytes[40..100], [1; 60]);
        assert_eq!(bytes[116..176], [1; 60]);
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named() {
        let Err(e) = Capture::wrap(Vec::new(), Path::new("/nonexistent/x.pcap")) else { panic!("made") };
        assert!(e.to_string().contains("/nonexistent/x.pcap"), "{e}");
    }
}
