//! Rate-limited logging for everything a guest can trigger.
