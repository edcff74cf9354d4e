//! x86 address translation and segmentation as pure functions over values and
//! guest memory: paging of every mode with permission and reserved-bit checks
//! (SDM volume 3, chapter 5) and descriptor formats (chapter 3).
//!
//! Nothing here caches: engines put a TLB in front of [`walk`].

mod descriptor;
mod entry;
mod paging;
mod walk;

pub use descriptor::{Descriptor, Gate, system_type};
pub use paging::{Access, PageFault, PagingMode, PagingParams, Translation, page_fault_code};
pub use walk::{ReservedPdpte, inspect, load_pdptes, walk, walk_marked};
