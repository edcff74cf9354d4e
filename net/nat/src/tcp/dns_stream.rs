//! DNS over TCP (RFC 7766): messages behind two bytes of length.

/// Messages of a stream, put together as they pass.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// Length and so much of the message as is there: 64 KiB at most.
    partial: Vec<u8>,
}

/// Both directions of a connection to the name server.
#[derive(Debug, Default)]
pub(super) struct DnsStream {
    pub(super) queries: Messages,
    pub(super) answers: Messages,
}

impl Messages {
    /// Look at each message that bytes complete, until one is refused; answers whether none was.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut admit: impl FnMut(&[u8]) -> bool) -> bool {
        while !bytes.is_empty() {
            let wanted = match self.partial.first_chunk::<2>() {
                Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
                None => 2,
            };
            let n = (wanted - self.partial.len()).min(bytes.len());
            let (now, later) = bytes.split_at(n);
            self.partial.extend_from_slice(now);
            bytes = later;
            let Some((length, message)) = self.partial.split_first_chunk::<2>() else { continue };
            if message.len() == usize::from(u16::from_be_bytes(*length)) {
                if !admit(message) {
                    return false;
                }
                self.partial.clear();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let stream = [&[0, 3][..], b"abc", &[0, 0], &[0, 1], b"d", &[0, 9], b"never"].concat();
        for cut in 1..stream.len() {
            let mut messages = Messages::default();
            let mut seen = Vec::new();
            for part in stream.chunks(cut) {
                assert!(messages.pass(part, |m| {
                    seen.push(m.to_vec());
                    true
                }));
            }
            assert_eq!(seen, [b"abc".to_vec(), vec![], b"d".to_vec()], "cut {cut}");
        }
        assert!(!Messages::default().pass(&stream, |m| m != b"d"));
    }
}
