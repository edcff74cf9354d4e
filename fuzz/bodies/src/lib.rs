//! What each fuzz target does with its input, one module a target. Here, in the
//! workspace, so that the ordinary toolchain builds it: the programs that libFuzzer
//! drives (`fuzz/fuzz_targets`) only call it, and a test does it with every input
//! that is kept (`fuzz/seeds`).

mod images;

mod agent_messages;
mod control_request;
mod foreign_image;
mod fs_requests;
mod interpreter_code;
mod loader_bytes;
mod loader_damaged;
mod loader_payload;
mod machine_bus;
mod nat_frames;
mod nat_messages;
mod nvme_commands;
mod qcow2_image;
mod qcow2_read;
mod state_stream;
mod vhost_user_daemon;
mod virtio_block_request;
mod virtio_device;
mod vsock_packets;

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Calls a macro with the names of all targets.
#[macro_export]
macro_rules! with_targets {
    ($do:ident) => {
        $do! {
            agent_messages
            control_request
            foreign_image
            fs_requests
            interpreter_code
            loader_bytes
            loader_damaged
            loader_payload
            machine_bus
            nat_frames
            nat_messages
            nvme_commands
            qcow2_image
            qcow2_read
            state_stream
            vhost_user_daemon
            virtio_block_request
            virtio_device
            vsock_packets
        }
    };
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(pub use $name::$name;)*
        /// All of them, by name.
        pub const TARGETS: &[Target] = &[$((stringify!($name), $name)),*];
    };
}

with_targets!(targets);
