//! A queue's requests where the disk does several at once.

use std::collections::BTreeMap;

use disk::{DiskError, Transfer, Transfers};
use virtio_core::Chain;

use crate::request::{Full, Target};
use crate::{BATCH, Requests};

/// Requests that were taken.
struct Overlap<'a> {
    requests: &'a mut Requests,
    /// The tag of the transfer taken last.
    tag: u64,
    /// Transfers not answered, by tag.
    under_way: BTreeMap<u64, Chain>,
    /// Anything but a transfer, which waits until those before it are done.
    alone: Option<Chain>,
    unsignalled: u32,
}

/// Execute all requests there are, or until one is held: it and those behind it, none
/// of which has been answered, go back into the queue.
pub fn run(requests: &mut Requests) {
    let shared = requests.shared.clone();
    let (disk, memory) = (shared.target.disk(), requests.queue.memory().clone());
    let mut o = Overlap { requests, tag: 0, under_way: BTreeMap::new(), alone: None, unsignalled: 0 };
    while !o.requests.held {
        disk.transfer_all(&memory, &mut o);
        if o.under_way.is_empty() {
            let Some(chain) = o.alone.take() else { break };
            match (shared.target.execute(&chain, &memory), &shared.on_full) {
                (Ok(written), _) => o.answer(chain, written),
                (Err(Full), None) => {
                    let written = Target::fail(&chain);
                    o.answer(chain, written);
                }
                (Err(Full), Some(_)) => o.alone = Some(chain),
            }
        }
        if o.alone.is_some() || !o.under_way.is_empty() {
            o.put_back();
        }
    }
    o.pause();
}

impl Overlap<'_> {
    fn answer(&mut self, chain: Chain, written: u32) {
        self.requests.queue.complete(chain, written);
        self.unsignalled += 1;
        if self.unsignalled == BATCH {
            self.pause();
        }
    }

    /// Undo what was taken, the last first, until the host has room.
    fn put_back(&mut self) {
        let under_way = std::mem::take(&mut self.under_way);
        for chain in self.alone.take().into_iter().chain(under_way.into_values().rev()) {
            self.requests.queue.put_back(chain);
        }
        self.requests.held = true;
        if let Some(told) = &self.requests.shared.on_full {
            told();
        }
    }
}

impl Transfers for Overlap<'_> {
    fn next(&mut self) -> Option<Transfer> {
        if self.alone.is_some() {
            return None;
        }
        let chain = self.requests.queue.pop()?;
        let Some((write, offset, segments)) = self.requests.shared.target.transfer(&chain) else {
            self.alone = Some(chain);
            return None;
        };
        self.tag += 1;
        self.under_way.insert(self.tag, chain);
        Some(Transfer { tag: self.tag, write, offset, segments })
    }

    fn done(&mut self, tag: u64, result: Result<(), DiskError>) {
        if let Some(chain) = self.under_way.remove(&tag) {
            let written = self.requests.shared.target.finish(&chain, result);
            self.answer(chain, written);
        }
    }

    fn pause(&mut self) {
        if std::mem::take(&mut self.unsignalled) > 0 {
            self.requests.queue.signal();
        }
    }

    fn holds(&self) -> bool {
        self.requests.shared.on_full.is_some()
    }
}
