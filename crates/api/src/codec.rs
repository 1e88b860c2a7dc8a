//! The encoding of messages in all gRPC services: protobuf, with buffers that are small as long as the messages are.
//!
//! The generated services name this codec (`build.rs`). Its buffers exist for as long as a call, and a leader has one
//! long call for each worker, which is idle nearly always.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// Initial size of the two buffers of a call, in bytes. They grow with the messages, and never become smaller.
const BUFFER: usize = 512;
/// Bytes of encoded messages that are handed to the connection at once.
const AT_ONCE: usize = 4 << 10;

/// Encodes `T` and decodes `U`.
#[derive(Debug)]
pub(crate) struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, AT_ONCE))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, AT_ONCE))
    }
}
