//! IEEE 754 and x87 arithmetic in integers: exact, portable, every rounding mode and exception flag.
