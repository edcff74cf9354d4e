//! The header of packets (5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The host's context identifier.
pub const HOST_CID: u64 = 2;
/// The socket type of streams.
pub(crate) const STREAM: u16 = 1;
/// Flag of a shutdown: the sender will receive no more.
pub(crate) const NO_RECEIVE: u32 = 1;
/// Flag of a shutdown: the sender will send no more.
pub(crate) const NO_SEND: u32 = 2;

/// What a packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation(pub u16);

impl Operation {
    /// Ask for a connection.
    pub const REQUEST: Self = Self(1);
    /// Accept it.
    pub const RESPONSE: Self = Self(2);
    /// There is no such connection, or none any more.
    pub const RST: Self = Self(3);
    /// No more in one direction or both.
    pub const SHUTDOWN: Self = Self(4);
    /// Bytes of the stream.
    pub const RW: Self = Self(5);
    /// Only `buf_alloc` and `fwd_cnt`, which every packet has.
    pub const CREDIT_UPDATE: Self = Self(6);
    /// Ask for a credit update.
    pub const CREDIT_REQUEST: Self = Self(7);
}

/// `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sender's context identifier.
    pub src_cid: u64,
    /// The receiver's.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's.
    pub dst_port: u32,
    /// Bytes behind the header.
    pub len: u32,
    /// Type of the socket.
    pub kind: u16,
    /// What it does.
    pub op: Operation,
    /// For shutdowns.
    pub flags: u32,
    /// Bytes the sender can hold of this connection.
    pub buf_alloc: u32,
    /// Bytes the sender's program has taken so far; runs over.
    pub fwd_cnt: u32,
}

impl Header {
    /// From bytes as they are sent.
    pub fn decode(bytes: &[u8; HEADER]) -> Self {
        fn at<const N: usize>(bytes: &[u8; HEADER], offset: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[offset + i])
        }
        Header {
            src_cid: u64::from_le_bytes(at(bytes, 0)),
            dst_cid: u64::from_le_bytes(at(bytes, 8)),
            src_port: u32::from_le_bytes(at(bytes, 16)),
            dst_port: u32::from_le_bytes(at(bytes, 20)),
            len: u32::from_le_bytes(at(bytes, 24)),
            kind: u16::from_le_bytes(at(bytes, 28)),
            op: Operation(u16::from_le_bytes(at(bytes, 30))),
            flags: u32::from_le_bytes(at(bytes, 32)),
            buf_alloc: u32::from_le_bytes(at(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(at(bytes, 40)),
        }
    }

    /// As it is sent.
    pub fn encode(&self) -> [u8; HEADER] {
        let Header { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt } = *self;
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&src_cid.to_le_bytes());
        put(&dst_cid.to_le_bytes());
        for field in [src_port, dst_port, len] {
            put(&field.to_le_bytes());
        }
        put(&kind.to_le_bytes());
        put(&op.0.to_le_bytes());
        for field in [flags, buf_alloc, fwd_cnt] {
            put(&field.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_standard_has_them() {
        let bytes: [u8; HEADER] = std::array::from_fn(|i| i as u8);
        let header = Header::decode(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!((header.src_port, header.dst_port, header.len), (0x1312_1110, 0x1716_1514, 0x1b1a_1918));
        assert_eq!((header.kind, header.op.0, header.flags), (0x1d1c, 0x1f1e, 0x2322_2120));
        assert_eq!(header.encode(), bytes);
    }
}
