//! The same functions, on the same server, over every driver: what a machine is must not show, except in what it keeps
//! functions from.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unreachable_pub,
    reason = "tests fail by panicking; their modules are shared by path"
)]

#[path = "agents/binary.rs"]
mod binary;
#[path = "machines/driver.rs"]
mod driver;
#[path = "control/harness.rs"]
mod harness;
#[path = "machines/memory.rs"]
mod memory;
#[path = "machines/resources.rs"]
mod resources;
#[path = "machines/suite.rs"]
mod suite;

use driver::Driver;

/// One module of tests for each driver.
macro_rules! over_each_driver {
    ($($module:ident => $driver:expr, [$($test:ident),* $(,)?];)*) => {$(
        mod $module {
            $(
                #[tokio::test]
                async fn $test() {
                    super::suite::$test($driver).await;
                }
            )*
        }
    )*};
}

over_each_driver! {
    in_process => super::Driver::InProcess, [
        functions_answer, host_services_work_from_inside, namespaces_are_kept_apart, errors_reach_the_caller,
    ];
    process => super::Driver::Process, [
        functions_answer, host_services_work_from_inside, namespaces_are_kept_apart, errors_reach_the_caller,
        a_killed_machine_is_replaced, a_machine_that_stands_still_is_replaced, machines_are_told_of, credentials_stay_with_the_node,
        shutdown_leaves_no_process,
    ];
    qemu => super::Driver::Qemu, [
        functions_answer, host_services_work_from_inside, namespaces_are_kept_apart, errors_reach_the_caller,
        a_killed_machine_is_replaced, a_machine_that_stands_still_is_replaced, machines_are_told_of, credentials_stay_with_the_node,
        shutdown_leaves_no_process,
    ];
}
