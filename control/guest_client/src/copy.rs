//! Trees of files into a guest and out of it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use agent_protocol::{ChannelError, EntryKind, Receiver, ToGuest, ToHost, TreeItem, TreeName, send_tree};

use crate::dial::out_of_order;
use crate::{Guest, GuestError};

/// What a copy brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Bytes of files.
    pub bytes: u64,
    /// Devices, pipes and sockets, which are left out.
    pub skipped: u64,
}

/// An error of a file is the host's; one of the connection says more about the guest.
fn host(e: ChannelError) -> GuestError {
    match e {
        ChannelError::Io(e) => GuestError::Host(e),
        other => GuestError::Channel(other),
    }
}

impl Guest {
    /// Copy the host's `from` into the guest: into the folder `to`, or by that name.
    /// `progress` is told the bytes sent so far.
    ///
    /// # Errors
    /// When something cannot be read here or written there.
    pub fn copy_in(
        &self,
        from: &Path,
        to: &[u8],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Copied, GuestError> {
        let mut channel = self.connect()?;
        // Of any length, and a paused guest goes on with it.
        channel.stream_mut().for_ever()?;
        channel.send(&ToGuest::CopyIn { path: to.to_vec() })?;
        let (mut copied, mut lost) = (Copied::default(), false);
        let result = send_tree(from, &mut |item| {
            match &item {
                TreeItem::Data(bytes) => copied.bytes += bytes.len() as u64,
                TreeItem::Entry(e) if e.kind == EntryKind::Special => copied.skipped += 1,
                _ => {}
            }
            progress(copied.bytes);
            let sent = channel.send(&ToGuest::Tree(item));
            lost |= sent.is_err();
            sent
        });
        match result {
            Err(e) if !lost => return Err(host(e)),
            // Why the agent has closed the connection stands in what it said last.
            Ok(()) | Err(_) => {}
        }
        match channel.receive()? {
            ToHost::Done => Ok(copied),
            ToHost::Failed(failure) => Err(GuestError::Failed(failure)),
            _ => Err(out_of_order("the answer to a copy")),
        }
    }

    /// Copy the guest's `from` to the host: into the folder `to`, or by that name.
    /// In a folder it is called by the last name of `from`, or `otherwise` if that
    /// has none, as "/" and "..": the guest has no say in it. `progress` is told the bytes received, and those of the file at the top, if
    /// it is one.
    ///
    /// # Errors
    /// When something cannot be read there or written here.
    pub fn copy_out(
        &self,
        from: &[u8],
        to: &Path,
        otherwise: &OsStr,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Copied, GuestError> {
        let name = TreeName::asked_for(Path::new(OsStr::from_bytes(from)), otherwise);
        let mut receiver = Receiver::new(to, name).map_err(GuestError::Host)?;
        let mut channel = self.connect()?;
        // Of any length, and a paused guest goes on with it.
        channel.stream_mut().for_ever()?;
        channel.send(&ToGuest::CopyOut { path: from.to_vec() })?;
        let (mut copied, mut total) = (Copied::default(), None);
        loop {
            match channel.receive()? {
                ToHost::Tree(item) => {
                    if let TreeItem::Entry(e) = &item
                        && let EntryKind::File { size } = e.kind
                        && !e.path.contains(&b'/')
                    {
                        total = Some(size);
                    }
                    let end = item == TreeItem::End;
                    copied.bytes += receiver.accept(item).map_err(host)?;
                    progress(copied.bytes, total);
                    if end {
                        copied.skipped = receiver.skipped();
                        return Ok(copied);
                    }
                }
                ToHost::Failed(failure) => return Err(GuestError::Failed(failure)),
                _ => return Err(out_of_order("a message during a copy")),
            }
        }
    }
}
