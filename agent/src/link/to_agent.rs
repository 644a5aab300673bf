//! Frames from the node to an agent.

use std::collections::BTreeMap;

use nex_runtime::engine::{FunctionSpec, Limits};
use nex_runtime::host_services::{Headers, HostError, HostResponse, HostResult};
use nex_runtime::invocation::Trigger;

use super::frame::{Frame, FrameLimits, LinkError, MetaWriter};
use super::message::{CallId, Encoded, FunctionId, HelloAck, Message};

/// What a node says to an agent.
#[derive(Debug)]
pub enum NodeToAgent {
    /// Accepts the agent; nothing else is sent before it.
    HelloAck(HelloAck),
    /// Load a function; answered by `DeployResult`.
    Deploy {
        /// Its id from now on.
        function: FunctionId,
        /// What to load. The source is the frame's payload.
        spec: FunctionSpec,
    },
    /// Drop a function, loaded or still loading. Not answered; calls in flight still are.
    Undeploy {
        /// Which.
        function: FunctionId,
    },
    /// Call a function; answered by any number of `Stream` and one `Reply` or `ReplyError`.
    Trigger {
        /// Names the call in its answers.
        call: CallId,
        /// Function to call.
        function: FunctionId,
        /// The message. Its payload is the frame's.
        trigger: Trigger,
    },
    /// A host call succeeded.
    HostResult {
        /// The agent's id of the call.
        call: CallId,
        /// Its payload is the frame's.
        response: HostResponse,
    },
    /// A host call failed.
    HostError {
        /// The agent's id of the call.
        call: CallId,
        /// Why.
        error: HostError,
    },
    /// Answered by `Pong` with the same nonce.
    Ping {
        /// Any number.
        nonce: u64,
    },
    /// Answer the calls in flight, then exit. No trigger or deploy follows.
    Drain,
}

const HELLO_ACK: u8 = 1;
const DEPLOY: u8 = 2;
const UNDEPLOY: u8 = 3;
const TRIGGER: u8 = 4;
const HOST_RESULT: u8 = 5;
const HOST_ERROR: u8 = 6;
const PING: u8 = 7;
const DRAIN: u8 = 8;

impl Message for NodeToAgent {
    /// The metadata limit leaves room for the key list of a large bucket, the payload limit for large objects.
    const LIMITS: FrameLimits = FrameLimits {
        meta: 16 << 20,
        payload: 256 << 20,
    };

    fn encode(self, meta: &mut MetaWriter<'_>) -> postcard::Result<Encoded> {
        Ok(match self {
            Self::HelloAck(ack) => {
                meta.put(&ack)?;
                Encoded::new(HELLO_ACK, 0)
            }
            Self::Deploy { function, spec } => {
                meta.put(&(
                    &spec.id,
                    &spec.namespace,
                    &spec.name,
                    &spec.workload_type,
                    &spec.vars,
                    &spec.limits,
                ))?;
                Encoded::with_payload(DEPLOY, function.0, spec.source)
            }
            Self::Undeploy { function } => Encoded::new(UNDEPLOY, function.0),
            Self::Trigger {
                call,
                function,
                trigger,
            } => {
                meta.put(&(function, &trigger.subject, &trigger.reply, &trigger.headers))?;
                Encoded::with_payload(TRIGGER, call.0, trigger.payload)
            }
            Self::HostResult { call, response } => {
                meta.put(&response.result)?;
                Encoded::with_payload(HOST_RESULT, call.0, response.payload)
            }
            Self::HostError { call, error } => {
                meta.put(&error)?;
                Encoded::new(HOST_ERROR, call.0)
            }
            Self::Ping { nonce } => Encoded::new(PING, nonce),
            Self::Drain => Encoded::new(DRAIN, 0),
        })
    }

    fn decode(frame: Frame) -> Result<Self, LinkError> {
        if !matches!(frame.kind, DEPLOY | TRIGGER | HOST_RESULT) {
            frame.no_payload()?;
        }
        Ok(match frame.kind {
            HELLO_ACK => {
                frame.no_id()?;
                Self::HelloAck(frame.meta()?)
            }
            DEPLOY => {
                type Meta = (String, String, String, String, BTreeMap<String, String>, Limits);
                let (id, namespace, name, workload_type, vars, limits): Meta = frame.meta()?;
                Self::Deploy {
                    function: FunctionId(frame.id),
                    spec: FunctionSpec {
                        id,
                        namespace,
                        name,
                        workload_type,
                        source: frame.payload,
                        vars,
                        limits,
                    },
                }
            }
            UNDEPLOY => {
                frame.no_meta()?;
                Self::Undeploy {
                    function: FunctionId(frame.id),
                }
            }
            TRIGGER => {
                type Meta = (FunctionId, String, Option<String>, Headers);
                let (function, subject, reply, headers): Meta = frame.meta()?;
                Self::Trigger {
                    call: CallId(frame.id),
                    function,
                    trigger: Trigger {
                        subject,
                        reply,
                        headers,
                        payload: frame.payload,
                    },
                }
            }
            HOST_RESULT => Self::HostResult {
                call: CallId(frame.id),
                response: HostResponse {
                    result: frame.meta::<HostResult>()?,
                    payload: frame.payload,
                },
            },
            HOST_ERROR => Self::HostError {
                call: CallId(frame.id),
                error: frame.meta()?,
            },
            PING => {
                frame.no_meta()?;
                Self::Ping { nonce: frame.id }
            }
            DRAIN => {
                frame.no_id()?;
                frame.no_meta()?;
                Self::Drain
            }
            other => return Err(LinkError::Kind(other)),
        })
    }
}
