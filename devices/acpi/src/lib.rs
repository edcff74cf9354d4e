//! ACPI tables of the board, built from its description.
