/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Makes the verifier forget what it knows of a number. It follows all that comes after once for each value that it can tell apart;
 * where many ways lead to a few values, that is most of the time that a start takes.
 */
#ifndef TCPEVENT_FORGET_H
#define TCPEVENT_FORGET_H

/*
 * Of 1 to 255. By way of the stack, of whose bytes the verifier does not know what is in them, but for those that begin a word, and
 * for zeros. In assembly, as the compiler would put the byte where it likes.
 */
static __always_inline __u8 forget(__u64 number)
{
	__u64 word;

	asm volatile("*(u8 *)(%[word] + 1) = %[number]; %[number] = *(u8 *)(%[word] + 1)"
		     : [number] "+r"(number)
		     : [word] "r"(&word));
	return number;
}

#endif
