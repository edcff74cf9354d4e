//! Messages between the host and the agent in a guest.
//!
//! Both sides exchange *frames* over a byte stream, which is a vsock connection
//! to port [`PORT`]:
//!
//! ```text
//! u32 length of the payload, little endian, at most MAX_PAYLOAD
//! u8  kind
//! payload
//! ```
//!
//! A connection carries one request. Each side first sends [`Hello`]; sides whose
//! [`VERSION`]s differ part with a message that names both. Then the host sends a
//! request ([`ToGuest`]) and the agent answers with [`ToHost`] messages until a
//! last one that ends the request ([`ToHost::is_last`]).
//!
//! Each side treats the other as hostile: every length has a cap, every message
//! is decoded to its last byte, and what comes out of order ends the connection.
//! The encoding is our own, some 200 lines, for serde's derive and a format
//! cannot be had by a plain `rustc`.

mod codec;
mod frames;
mod message;
mod tree;

pub use codec::{Decoder, Encoder, MAX_LIST, MAX_STRING, ProtocolError};
pub use frames::{Channel, ChannelError, Frames, MAX_PAYLOAD};
pub use message::{
    Ending, Exec, Failure, FailureKind, GuestFacts, Hello, Message, Power, STDIN_WINDOW, Size, ToGuest,
    ToHost, VERSION,
};
pub use tree::{EntryKind, MAX_DEPTH, Receiver, TreeEntry, TreeItem, TreeName, send_tree, tree_size};

/// The vsock port where the agent listens: below 1024, so that only a privileged
/// process of the guest can take its place.
pub const PORT: u32 = 1020;

/// The most bytes of file or stream content in one message.
pub const MAX_CHUNK: usize = 64 << 10;
