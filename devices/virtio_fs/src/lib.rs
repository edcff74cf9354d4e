//! The virtio file system device (virtio 1.2, section 5.11): a folder of the host,
//! served in-process.
//!
//! | module | what |
//! | --- | --- |
//! | `abi` | the FUSE protocol's numbers and structures |
//! | `nodes` | inodes that the guest knows, files it has open |
//! | `server` | a request's way to its answer |
//! | `contents` | reading and writing files and folders |
//! | `changes` | making, removing and changing names and attributes |
//! | `front` | what a guest sees of a share whoever serves it |
//! | `device` | queues and the worker |
//!
//! **Containment.** A node is an O_PATH descriptor. Requests name a node and at most
//! one component below it, which is opened by openat2 with RESOLVE_BENEATH,
//! RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS; "..", slashes and empty names are
//! refused before. Links are read, never followed; only regular files and folders are
//! opened, by the descriptor that was looked at, so that a pipe or a device behind a
//! changed name is never touched; device nodes are not made. What the host moves out
//! of the folder while the guest has it open stays open to the guest.
//!
//! **Owners.** With the privilege to change owners, what the guest makes belongs to
//! whom the guest says; without, to the user of the process. Who may do what is
//! judged by the guest's kernel by the modes it sees, and by the host for the process.
//!
//! Own server, because the crate `fuse-backend-rs` brings vm-memory's traits,
//! behind which writes would miss guest memory's marks, and virtiofsd is a program.

mod abi;
mod changes;
mod contents;
mod device;
mod front;
mod nodes;
mod server;

pub use abi::{IN_HEADER, OUT_HEADER, Opcode, ROOT};
pub use device::{FsConfig, VirtioFs};
pub use front::{MAX_TAG, NAME, QUEUES, Tag, check_not_mounted, save_mounted};
pub use server::Server;
