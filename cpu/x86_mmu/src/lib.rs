//! x86 paging of every mode and segmentation checks.
