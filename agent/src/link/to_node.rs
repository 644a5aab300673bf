//! Frames from an agent to its node. The node treats them as hostile.

use nex_runtime::engine::{EngineEvent, LoadError};
use nex_runtime::host_services::{Headers, HostRequest, Operation};
use nex_runtime::invocation::{InvokeError, Reply};
use nex_runtime::logs::LogLine;

use super::PROTOCOL_VERSION;
use super::frame::{Frame, FrameLimits, LinkError, MetaWriter};
use super::message::{CallId, Encoded, FunctionId, Health, Hello, Message};

/// What an agent says to its node.
#[derive(Debug)]
pub enum AgentToNode {
    /// The first frame.
    Hello(Hello),
    /// Outcome of a `Deploy`.
    DeployResult {
        /// The deployed function.
        function: FunctionId,
        /// Whether it can be called now.
        result: Result<(), LoadError>,
    },
    /// One reply of a streaming function; more follow.
    Stream {
        /// The node's id of the call.
        call: CallId,
        /// Its body is the frame's payload.
        reply: Reply,
    },
    /// The last reply of a call.
    Reply {
        /// The node's id of the call.
        call: CallId,
        /// Its body is the frame's payload.
        reply: Reply,
    },
    /// A call failed.
    ReplyError {
        /// The node's id of the call.
        call: CallId,
        /// Why.
        error: InvokeError,
    },
    /// A function asks for a host service; answered by `HostResult` or `HostError`.
    HostCall {
        /// Names the call in its answer.
        call: CallId,
        /// The function that asks.
        function: FunctionId,
        /// Its payload is the frame's.
        request: HostRequest,
    },
    /// Nobody waits for this host call any more. It may have been answered already.
    HostCancel {
        /// The agent's id of the call.
        call: CallId,
    },
    /// A log line of a function.
    Log {
        /// Which.
        function: FunctionId,
        /// What it said.
        line: LogLine,
    },
    /// An engine event of a function.
    Event {
        /// Which.
        function: FunctionId,
        /// What happened.
        event: EngineEvent,
    },
    /// Answer to `Ping`.
    Pong {
        /// Nonce of the ping.
        nonce: u64,
        /// How the agent is.
        health: Health,
    },
}

const HELLO: u8 = 65;
const DEPLOY_RESULT: u8 = 66;
const STREAM: u8 = 67;
const REPLY: u8 = 68;
const REPLY_ERROR: u8 = 69;
const HOST_CALL: u8 = 70;
const HOST_CANCEL: u8 = 71;
const LOG: u8 = 72;
const EVENT: u8 = 73;
const PONG: u8 = 74;

impl Message for AgentToNode {
    /// Small metadata: decoded headers and strings take several times their bytes on the wire.
    const LIMITS: FrameLimits = FrameLimits {
        meta: 1 << 20,
        payload: 64 << 20,
    };

    fn encode(self, meta: &mut MetaWriter<'_>) -> postcard::Result<Encoded> {
        Ok(match self {
            Self::Hello(hello) => {
                meta.put(&hello)?;
                Encoded::new(HELLO, PROTOCOL_VERSION)
            }
            Self::DeployResult { function, result } => {
                meta.put(&result)?;
                Encoded::new(DEPLOY_RESULT, function.0)
            }
            Self::Stream { call, reply } => {
                meta.put(&reply.headers)?;
                Encoded::with_payload(STREAM, call.0, reply.body)
            }
            Self::Reply { call, reply } => {
                meta.put(&reply.headers)?;
                Encoded::with_payload(REPLY, call.0, reply.body)
            }
            Self::ReplyError { call, error } => {
                meta.put(&error)?;
                Encoded::new(REPLY_ERROR, call.0)
            }
            Self::HostCall {
                call,
                function,
                request,
            } => {
                meta.put(&(function, &request.operation))?;
                Encoded::with_payload(HOST_CALL, call.0, request.payload)
            }
            Self::HostCancel { call } => Encoded::new(HOST_CANCEL, call.0),
            Self::Log { function, line } => {
                meta.put(&line)?;
                Encoded::new(LOG, function.0)
            }
            Self::Event { function, event } => {
                meta.put(&event)?;
                Encoded::new(EVENT, function.0)
            }
            Self::Pong { nonce, health } => {
                meta.put(&health)?;
                Encoded::new(PONG, nonce)
            }
        })
    }

    fn decode(frame: Frame) -> Result<Self, LinkError> {
        if !matches!(frame.kind, STREAM | REPLY | HOST_CALL) {
            frame.no_payload()?;
        }
        let call = CallId(frame.id);
        let function = FunctionId(frame.id);
        Ok(match frame.kind {
            HELLO if frame.id != PROTOCOL_VERSION => {
                return Err(LinkError::Version {
                    theirs: frame.id,
                    ours: PROTOCOL_VERSION,
                });
            }
            HELLO => Self::Hello(frame.meta()?),
            DEPLOY_RESULT => Self::DeployResult {
                function,
                result: frame.meta()?,
            },
            STREAM => Self::Stream {
                call,
                reply: reply(frame)?,
            },
            REPLY => Self::Reply {
                call,
                reply: reply(frame)?,
            },
            REPLY_ERROR => Self::ReplyError {
                call,
                error: frame.meta()?,
            },
            HOST_CALL => {
                let (function, operation): (FunctionId, Operation) = frame.meta()?;
                Self::HostCall {
                    call,
                    function,
                    request: HostRequest {
                        operation,
                        payload: frame.payload,
                    },
                }
            }
            HOST_CANCEL => {
                frame.no_meta()?;
                Self::HostCancel { call }
            }
            LOG => Self::Log {
                function,
                line: frame.meta()?,
            },
            EVENT => Self::Event {
                function,
                event: frame.meta()?,
            },
            PONG => Self::Pong {
                nonce: frame.id,
                health: frame.meta()?,
            },
            other => return Err(LinkError::Kind(other)),
        })
    }
}

fn reply(frame: Frame) -> Result<Reply, LinkError> {
    let headers: Headers = frame.meta()?;
    Ok(Reply {
        headers,
        body: frame.payload,
    })
}
