//! Good images, which other crates' tests make, for the targets that damage them.

#[allow(dead_code, reason = "tests use all of it")]
#[path = "../../../storage/disk_foreign/tests/images/mod.rs"]
pub mod foreign;
#[path = "../../../boot/loader/tests/images/mod.rs"]
pub mod kernels;
#[path = "../../../storage/disk_qcow2/tests/images/mod.rs"]
pub mod qcow2;
