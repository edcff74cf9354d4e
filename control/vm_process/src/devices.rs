//! Devices that come while the machine runs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use board::{Board, DiskSpec, NetBackend, NetSpec};
use serde::de::DeserializeOwned;
use serde_json::Value;
use vm_api::{Refusal, RefusalKind, Reply};

use crate::owner::refused;

fn parse<T: DeserializeOwned>(spec: Value) -> Result<T, Refusal> {
    serde_json::from_value(spec)
        .map_err(|e| Refusal::new(RefusalKind::BadRequest, format!("not a device: {e}")))
}

/// Plug in the disk in files that the client has opened.
pub(crate) fn add_disk(board: &Arc<Board>, spec: Value, files: Vec<OwnedFd>) -> Result<Reply, Refusal> {
    let spec: DiskSpec = parse(spec)?;
    let disk = spec.open_of(files.into_iter().map(File::from).collect()).map_err(refused)?;
    board.add_disk(&spec, disk).map(|id| Reply::Added { id }).map_err(refused)
}

/// Plug in a card of user-mode NAT. `may_connect`: the process may make sockets.
pub(crate) fn add_net(board: &Arc<Board>, spec: Value, may_connect: bool) -> Result<Reply, Refusal> {
    let spec: NetSpec = parse(spec)?;
    let told = |why: &str| Err(Refusal::new(RefusalKind::Refused, why));
    match &spec.backend {
        NetBackend::Nat(nat) if !nat.forwards.is_empty() => {
            return told("ports are forwarded to cards that a machine starts with; leave out the forwards");
        }
        NetBackend::Nat(_) if !may_connect => {
            return told(
                "the machine was started without --network nat, and its process makes no sockets since; \
                 start it with --network nat",
            );
        }
        NetBackend::Nat(_) => {}
        NetBackend::Tap(_) | NetBackend::Bridge(_) | NetBackend::Passt(_) => {
            return told("only NAT comes while a machine runs; give --network when it starts");
        }
    }
    let ports = board::open_network(&spec, board.next_mac(&spec)).map_err(refused)?;
    board.add_net(&spec, ports).map(|id| Reply::Added { id }).map_err(refused)
}

/// A serial line has no size.
pub(crate) fn no_size() -> Refusal {
    Refusal::new(RefusalKind::Refused, "its console is a serial port, which has no size")
}
