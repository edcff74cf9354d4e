//! Arbitrary bytes as frames for the agent and for the host: decoded or refused;
//! what was decoded is the same after it was sent again, and a tree never leaves
//! its destination.

use std::os::unix::ffi::OsStrExt;

use agent_protocol::{Frames, Message, Receiver, ToGuest, ToHost, TreeItem, TreeName};

fn all<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Vec<M> {
    let mut frames = Frames::new();
    let mut seen = Vec::new();
    for piece in bytes.chunks(97) {
        frames.push(piece);
        while let Ok(Some(message)) = frames.take::<M>() {
            let mut again = Frames::new();
            again.push(&Frames::encode(&message).expect("it came in a frame"));
            assert_eq!(again.take::<M>().expect("it was decoded").as_ref(), Some(&message));
            seen.push(message);
        }
    }
    seen
}

/// One run.
pub fn agent_messages(bytes: &[u8]) {
    all::<ToGuest>(bytes);
    let items: Vec<TreeItem> = all::<ToHost>(bytes)
        .into_iter()
        .filter_map(|m| if let ToHost::Tree(item) = m { Some(item) } else { None })
        .collect();
    if items.is_empty() {
        return;
    }
    let top = std::env::temp_dir().join(format!("strata-fuzz-tree-{}", std::process::id()));
    let (inside, outside) = (top.join("in"), top.join("out"));
    std::fs::create_dir_all(&inside).expect("a temporary folder");
    std::fs::create_dir_all(&outside).expect("a temporary folder");
    // Half of the inputs as a host that asked for something, whose name the bytes choose.
    let name = match bytes.len() % 2 {
        0 => TreeName::Sent,
        _ => TreeName::Asked(bytes[..1].to_vec()),
    };
    if let Ok(mut receiver) = Receiver::new(&inside, name.clone()) {
        let _ = items.into_iter().try_for_each(|item| receiver.accept(item).map(drop));
    }
    if let TreeName::Asked(name) = name {
        let mut names = std::fs::read_dir(&inside).expect("it is there").flatten();
        assert!(names.all(|entry| entry.file_name().as_bytes() == name));
    }
    assert_eq!(std::fs::read_dir(&top).expect("it is there").count(), 2);
    assert_eq!(std::fs::read_dir(&outside).expect("it is there").count(), 0);
    std::fs::remove_dir_all(&top).expect("it is there");
}
