package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"

	"noded.dev/noded/imagestore/limit"
	"noded.dev/noded/internal/kind"
)

// decodeStrict decodes one JSON object into v, refusing what two readers
// could understand differently: a key twice, a key that differs from a known
// one only in case (Go's decoder would take it for the known one), text after
// the object, and nesting beyond depth.
func decodeStrict(data []byte, v any, depth int) error {
	w := jsonWalk{dec: json.NewDecoder(bytes.NewReader(data)), max: depth}
	w.dec.UseNumber()
	t, err := w.dec.Token()
	if err != nil {
		return kind.Errorf(kind.Invalid, "is not JSON: %w", err)
	}
	if t != json.Delim('{') {
		return kind.Errorf(kind.Invalid, "is not a JSON object")
	}
	if err := w.object(1, reflect.TypeOf(v)); err != nil {
		return kind.Wrap(kind.Invalid, err)
	}
	if _, err := w.dec.Token(); !errors.Is(err, io.EOF) {
		return kind.Errorf(kind.Invalid, "has text after its end")
	}
	if err := json.Unmarshal(data, v); err != nil {
		return kind.Errorf(kind.Invalid, "has a field of the wrong type: %w", err)
	}
	return nil
}

type jsonWalk struct {
	dec *json.Decoder
	max int
}

func (w *jsonWalk) object(depth int, t reflect.Type) error {
	if depth > w.max {
		return limit.Error(kind.Invalid, "nesting of JSON", "json_depth", w.max)
	}
	fields := fieldTypes(t)
	seen := map[string]bool{}
	for w.dec.More() {
		token, err := w.dec.Token()
		if err != nil {
			return err
		}
		key := token.(string) // the decoder allows nothing else here
		if seen[key] {
			return kind.Errorf(kind.Invalid, "has the key %q twice", clip(key))
		}
		seen[key] = true
		sub, known := fields[key]
		if !known && fields != nil {
			for name := range fields {
				if strings.EqualFold(name, key) {
					return kind.Errorf(kind.Invalid, "has the key %q, which is not %q", clip(key), name)
				}
			}
		}
		if err := w.value(depth, sub); err != nil {
			return err
		}
	}
	_, err := w.dec.Token()
	return err
}

func (w *jsonWalk) value(depth int, t reflect.Type) error {
	token, err := w.dec.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('{'):
		return w.object(depth+1, t)
	case json.Delim('['):
		if depth+1 > w.max {
			return limit.Error(kind.Invalid, "nesting of JSON", "json_depth", w.max)
		}
		var item reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			item = t.Elem()
		}
		for w.dec.More() {
			if err := w.value(depth+1, item); err != nil {
				return err
			}
		}
		_, err := w.dec.Token()
		return err
	}
	return nil
}

// fieldTypes lists a struct's JSON names; nil for what is not a struct.
func fieldTypes(t reflect.Type) map[string]reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			for k, v := range fieldTypes(f.Type) {
				fields[k] = v
			}
			continue
		}
		if name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	return fields
}
