//! Log lines: `time [LEVEL] [target] message key=value`. The sink is chosen by the binary; nothing here writes.

/// Logs at info.
#[macro_export]
macro_rules! log_info {
    ($target:literal, $($arg:tt)+) => { log::info!(target: $target, "[{}] {}", $target, format_args!($($arg)+)) };
}

/// Logs at warn.
#[macro_export]
macro_rules! log_warn {
    ($target:literal, $($arg:tt)+) => { log::warn!(target: $target, "[{}] {}", $target, format_args!($($arg)+)) };
}

/// Logs at error.
#[macro_export]
macro_rules! log_error {
    ($target:literal, $($arg:tt)+) => { log::error!(target: $target, "[{}] {}", $target, format_args!($($arg)+)) };
}

/// Logs at debug.
#[macro_export]
macro_rules! log_debug {
    ($target:literal, $($arg:tt)+) => { log::debug!(target: $target, "[{}] {}", $target, format_args!($($arg)+)) };
}

/// Logs at a level that is decided where it is logged.
#[macro_export]
macro_rules! log_at {
    ($level:expr, $target:literal, $($arg:tt)+) => {
        log::log!(target: $target, $level, "[{}] {}", $target, format_args!($($arg)+))
    };
}
