/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Makes the verifier forget what it knows of a number. It follows all that comes after once for each value that it can tell apart;
 * where many ways lead to a few values, that is most of the time that a start takes.
 */
#ifndef TCPEVENT_FORGET_H
#define TCPEVENT_FORGET_H

/* Of 1 to 255. By a byte of the stack, of which it does not know what is in it unless that is 0, or the first of a word. */
static __always_inline __u8 forget(__u8 number)
{
	volatile __u8 bytes[8] __attribute__((aligned(8)));

	bytes[1] = number;
	return bytes[1];
}

#endif
