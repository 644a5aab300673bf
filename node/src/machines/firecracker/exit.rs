//! What Firecracker's exit codes mean.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How it ended, for people.
pub(super) fn explain(status: ExitStatus) -> String {
    if let Some(signal) = status.signal() {
        return format!("ended by signal {signal}");
    }
    let code = status.code().unwrap_or_default();
    match meaning(code) {
        Some(meaning) => format!("ended with code {code}: {meaning}"),
        None => format!("ended with code {code}"),
    }
}

/// The codes it documents.
fn meaning(code: i32) -> Option<&'static str> {
    Some(match code {
        0 => "its guest shut down",
        1 => "an error of its own, or of the jailer",
        2 => "an error it holds for impossible",
        148 => "it made a system call that its filter forbids",
        149 => "bus error: its memory file was cut short, or the host has no memory left",
        150 => "segmentation fault",
        151 => "it wrote a file larger than its resource limit allows",
        152 => "its configuration is wrong",
        153 => "its arguments are wrong",
        154 => "it used more processor time than its resource limit allows",
        155 => "broken pipe",
        156 => "hang-up",
        157 => "illegal instruction",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_codes_and_signals() {
        let code = |code: i32| explain(ExitStatus::from_raw(code << 8));
        assert!(code(148).contains("system call"));
        assert!(code(151).contains("larger than"));
        assert_eq!(code(77), "ended with code 77");
        assert_eq!(explain(ExitStatus::from_raw(9)), "ended by signal 9");
    }
}
