//! Conversion of the keys by which nodes encrypt networks.

use super::Malformed;
use crate::model::TunnelKey;
use crate::proto::types as pt;

impl From<&TunnelKey> for pt::TunnelKey {
    fn from(it: &TunnelKey) -> Self {
        Self { public: it.public.to_vec().into(), port: it.port.into() }
    }
}

impl TryFrom<pt::TunnelKey> for TunnelKey {
    type Error = Malformed;
    fn try_from(it: pt::TunnelKey) -> Result<Self, Malformed> {
        let public: &[u8] = &it.public;
        let length = format!("has {} bytes; a key has 32", public.len());
        let public = public.try_into().map_err(|_| Malformed::new("tunnel_keys.public", length))?;
        let port = u16::try_from(it.port).ok().filter(|port| *port > 0);
        let wrong = || Malformed::new("tunnel_keys.port", format!("is {}; a port is between 1 and 65535", it.port));
        Ok(Self { public, port: port.ok_or_else(wrong)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_is_an_error_with_the_name_of_the_field() {
        let key = |length, port| pt::TunnelKey { public: vec![7; length].into(), port };
        let error = |wire: pt::TunnelKey| TunnelKey::try_from(wire).expect_err("no key").to_string();
        assert_eq!(error(key(31, 51_820)), "the field `tunnel_keys.public` has 31 bytes; a key has 32");
        assert_eq!(error(key(32, 0)), "the field `tunnel_keys.port` is 0; a port is between 1 and 65535");
        assert_eq!(error(key(32, 65_536)), "the field `tunnel_keys.port` is 65536; a port is between 1 and 65535");
        let key = TunnelKey { public: [7; 32], port: 51_820 };
        assert_eq!(TunnelKey::try_from(pt::TunnelKey::from(&key)), Ok(key));
    }
}
