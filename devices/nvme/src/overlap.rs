//! A queue's commands where the disk does several at once.

use std::collections::BTreeMap;

use disk::{DiskError, Transfer, Transfers};

use crate::command::Command;
use crate::completion::Completion;
use crate::io::Outcome;
use crate::submission::{BATCH, Submission};

/// Commands that were taken.
pub struct Overlap<'a> {
    queue: &'a Submission,
    /// The entry to be fetched next.
    next: u16,
    /// The tag of the transfer taken last.
    tag: u64,
    /// Transfers not answered, with their entries, by tag.
    under_way: BTreeMap<u64, (u16, Command)>,
    /// Anything but a transfer, which waits until those before it are done.
    alone: Option<Command>,
    unsignalled: u32,
}

impl<'a> Overlap<'a> {
    /// Take commands from entry `head` until there are no more, the completion queue
    /// is full or one is held. Answers where to go on, and whether one is held: that is
    /// then the next, and none behind it has been answered.
    pub fn run(queue: &'a Submission, head: u16) -> (u16, bool) {
        let namespace = queue.namespace();
        let (under_way, alone) = (BTreeMap::new(), None);
        let mut o = Overlap { queue, next: head, tag: 0, under_way, alone, unsignalled: 0 };
        let held = loop {
            namespace.disk.transfer_all(&namespace.memory, &mut o);
            if let Some((_, (entry, _))) = o.under_way.first_key_value() {
                o.next = *entry;
                break true;
            }
            let Some(command) = o.alone.take() else { break false };
            let Outcome::Done(completion) = namespace.execute(&command) else {
                o.alone = Some(command);
                break true;
            };
            o.next = queue.after(o.next);
            o.answer(completion);
        };
        (0..o.under_way.len() + usize::from(o.alone.is_some())).for_each(|_| queue.completions.withdraw());
        o.pause();
        (o.next, held)
    }

    fn answer(&mut self, completion: Completion) {
        // The driver may use entries again before this one.
        let oldest = self.under_way.first_key_value().map_or(self.next, |(_, (entry, _))| *entry);
        self.queue.completions.post(self.queue.id, oldest, completion);
        self.unsignalled += 1;
        if self.unsignalled == BATCH {
            self.pause();
        }
    }
}

impl Transfers for Overlap<'_> {
    fn next(&mut self) -> Option<Transfer> {
        let queue = self.queue;
        if self.alone.is_some() || !queue.has_command(self.next) || !queue.completions.promise() {
            return None;
        }
        let Some(command) = queue.fetch(self.next) else {
            queue.completions.withdraw();
            return None;
        };
        let Some((write, offset, segments)) = queue.namespace().transfer(&command) else {
            self.alone = Some(command);
            return None;
        };
        self.tag += 1;
        self.under_way.insert(self.tag, (self.next, command));
        self.next = queue.after(self.next);
        Some(Transfer { tag: self.tag, write, offset, segments })
    }

    fn done(&mut self, tag: u64, result: Result<(), DiskError>) {
        if let Some((_, command)) = self.under_way.remove(&tag) {
            self.answer(self.queue.namespace().finish(&command, result));
        }
    }

    fn pause(&mut self) {
        if std::mem::take(&mut self.unsignalled) > 0 {
            self.queue.completions.signal();
        }
    }

    fn holds(&self) -> bool {
        self.queue.namespace().holds()
    }
}
