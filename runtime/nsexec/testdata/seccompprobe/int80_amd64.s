#include "textflag.h"

// func int80(nr, a, b, c uint32) int32
TEXT ·int80(SB), NOSPLIT, $0-20
	MOVL nr+0(FP), AX
	MOVL a+4(FP), BX
	MOVL b+8(FP), CX
	MOVL c+12(FP), DX
	MOVL $-1, SI
	MOVL $-1, DI
	PUSHQ BP
	MOVL $-1, BP
	INT $0x80
	POPQ BP
	MOVL AX, ret+16(FP)
	RET
