package cpu

// #include "support.h"
import "C"

// scorer is the session that scores: this one, or the same problem without values
// where keys for scoring are packed in another way. It is the same for few rows as
// for many, though packing then takes longer than it saves: a chunk of a prompt
// must get the scores that the whole gets.
func (s *session) scorer() (*session, error) {
	if C.trivium_scored_apart(s.kernels, s.problem) == 0 {
		return s, nil
	}
	if s.apart != nil {
		return s.apart, nil
	}
	d := &session{kernels: s.kernels, pooling: s.pooling, request: s.request, cancel: s.cancel}
	if err := d.describeApart(s); err != nil {
		d.Close()
		return nil, err
	}
	s.apart = d
	return d, nil
}

// describeApart fills problem, keys and heads with those of s, which outlives d.
func (d *session) describeApart(s *session) error {
	problem, err := array[C.trivium_problem](&d.memory, 1)
	if err != nil {
		return err
	}
	problem[0] = *s.problem
	problem[0].value_dim = 0
	d.problem = &problem[0]
	for i := range s.keys {
		keys, err := array[C.trivium_keys](&d.memory, len(s.keys[i]))
		if err != nil {
			return err
		}
		heads, err := array[C.trivium_head](&d.memory, len(s.heads[i]))
		if err != nil {
			return err
		}
		copy(keys, s.keys[i])
		copy(heads, s.heads[i])
		for k := range keys {
			keys[k].value.cols, keys[k].packed = 0, nil
		}
		for h := range heads {
			heads[h].problem, heads[h].keys = d.problem, &keys[h*len(keys)/len(heads)]
		}
		d.keys, d.heads = append(d.keys, keys), append(d.heads, heads)
	}
	return nil
}
