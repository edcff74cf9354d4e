//! What x86 instructions compute: values in, values and flags out. The one home of instruction semantics.
