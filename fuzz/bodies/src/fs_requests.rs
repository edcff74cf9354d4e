//! Arbitrary FUSE requests on a folder: each is answered within its room, and
//! nothing beside the folder changes.

use std::os::unix::fs::symlink;
use virtio_fs::{IN_HEADER, OUT_HEADER, Opcode, Server};

/// A folder with one of each kind, and something beside it.
fn prepare() -> std::path::PathBuf {
    // In memory where it can be: most of a run's time is what the folder takes.
    let memory = std::path::Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let top = place.join(format!("strata-fuzz-fs-{}", std::process::id()));
    let share = top.join("share");
    let _ = std::fs::remove_dir_all(&top);
    std::fs::create_dir_all(share.join("d")).expect("a temporary folder");
    std::fs::write(top.join("secret"), "secret").expect("a temporary file");
    std::fs::write(share.join("f"), "text").expect("a temporary file");
    symlink("..", share.join("l")).expect("a temporary link");
    top
}

fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((IN_HEADER + body.len()) as u32).to_ne_bytes());
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(1u64.to_ne_bytes());
    bytes.extend(node.to_ne_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

/// One run.
pub fn fs_requests(input: &[u8]) {
    let top = prepare();
    let mut server =
        Server::new(&top.join("share"), input.first().is_some_and(|b| b & 1 != 0)).expect("it is there");
    let init: Vec<u8> = [7u32, 36, 0, u32::MAX].iter().flat_map(|v| v.to_ne_bytes()).collect();
    server.serve(&request(Opcode::INIT.0, 0, &init), 4096);
    for name in ["d", "f", "l"] {
        server.serve(&request(Opcode::LOOKUP.0, 1, format!("{name}\0").as_bytes()), 4096);
    }
    // Opcode, node, room, length of the body; then the body.
    let mut rest = input;
    while let Some((&[opcode, node, room, length], after)) = rest.split_first_chunk() {
        let body;
        (body, rest) = after.split_at(after.len().min(length.into()));
        let room = usize::from(room) * 16;
        let answer = server.serve(&request((opcode % 64).into(), (node % 8).into(), body), room);
        if let Some(answer) = answer {
            assert!((OUT_HEADER..=room).contains(&answer.len()));
        }
    }
    assert_eq!(std::fs::read(top.join("secret")).expect("it is there"), b"secret");
    assert_eq!(std::fs::read_dir(&top).expect("it is there").count(), 2);
    std::fs::remove_dir_all(&top).expect("it is ours");
}
