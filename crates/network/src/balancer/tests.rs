//! The balancer in the kernel: processes of a control group of its own, in network namespaces of their own.

mod choice;
mod lifetime;
mod machine;
mod redirect;
