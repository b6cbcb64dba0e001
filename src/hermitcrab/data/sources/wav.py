"""Recordings as rows hold them: a WAV of plain PCM with a header of 44 bytes, so that equal samples are equal bytes."""

from __future__ import annotations

import io
import wave

from hermitcrab.errors import HermitcrabError

RATES = range(1000, 384_001)
CHANNELS = 16


def normalized(raw: bytes, where: str) -> bytes:
    """The same samples in a plain file.

    Raises:
        HermitcrabError: no WAV of PCM, or one that has more or fewer samples than its header says.
    """
    try:
        with wave.open(io.BytesIO(raw)) as file:
            channels, width, rate, frames = (
                file.getnchannels(),
                file.getsampwidth(),
                file.getframerate(),
                file.getnframes(),
            )
            if rate not in RATES or not 0 < channels <= CHANNELS or width not in (1, 2, 3, 4):
                raise HermitcrabError(
                    f"{where}: says that it has {channels:,} channels of {8 * width} bits at {rate:,} Hz; refused"
                )
            if frames * channels * width > len(raw):
                held = len(raw) // (channels * width)
                raise HermitcrabError(
                    f"{where}: says that it has {frames:,} samples, and has room for at most {held:,}"
                )
            samples = file.readframes(frames)
    except (wave.Error, EOFError, ValueError, RuntimeError, OverflowError) as error:
        raise HermitcrabError(f"{where}: is no WAV of plain PCM: {error or 'it ends early'}") from error
    if len(samples) != frames * channels * width:
        raise HermitcrabError(
            f"{where}: says that it has {frames:,} samples, and has {len(samples) // (channels * width):,}"
        )
    if not samples:
        raise HermitcrabError(f"{where}: has no samples")
    out = io.BytesIO()
    with wave.open(out, "wb") as made:
        made.setnchannels(channels)
        made.setsampwidth(width)
        made.setframerate(rate)
        made.writeframes(samples)
    return out.getvalue()
