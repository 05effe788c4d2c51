package config

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
)

// validate also reads the keys: a rule whose key is missing would refuse every
// image, which should show before the daemon starts with it.
func (v Verify) validate(p *problems, pattern string) {
	key := "images.verify." + tableName(pattern)
	if pattern == "" || strings.ContainsAny(pattern, " \t\n\x00") || !strings.ContainsAny(pattern, "*/") {
		p.addf(key, "it can match no repository: they have a registry and a path, or write a \"*\"")
	}
	p.oneOf(key+".require", v.Require, "nothing", "signature", "refuse")
	if v.Require == "signature" && len(v.Keys) == 0 {
		p.addf(key+".keys", "it needs at least one key")
	}
	if v.Require != "signature" && len(v.Keys) > 0 {
		p.addf(key+".keys", "keys go with require = \"signature\" alone")
	}
	for _, file := range v.Keys {
		p.absolute(key+".keys", file)
		if err := checkKey(file); err != nil {
			p.addf(key+".keys", "%v", err)
		}
	}
}

const maxKeyFile = 64 << 10 // bytes

func checkKey(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return fmt.Errorf("%s is not a file of at most %d bytes", file, maxKeyFile)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return fmt.Errorf("%s holds no public key in PEM (BEGIN PUBLIC KEY)", file)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	switch k := public.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("%s: an RSA key of %d bits is too short, 2048 are the least", file, k.N.BitLen())
		}
	default:
		return fmt.Errorf("%s: a key of type %T is not ECDSA, Ed25519 or RSA", file, public)
	}
	return nil
}
