"""Whether a destination answers, what it takes, and whether it can be asked back: step by step, each with its time."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from pydicom import uid
from pydicom.uid import UID
from pynetdicom import build_context, build_role

from clara_results.agents.dicom.association import (
    CONTEXT_LIMIT,
    VERIFICATION,
    Association,
    AssociationSettings,
    Context,
    Peer,
)
from clara_results.agents.dicom.commitment import PUSH_MODEL
from clara_results.agents.dicom.connection import AssociationAborted
from clara_results.agents.dicom.dimse import NothingAccepted, associate
from clara_results.agents.dicom.verify import FIND, GET, image_query
from clara_results.agents.secrets import Secrets
from clara_results.agents.steps import taken
from clara_results.domain.clock import Clock, SystemClock
from clara_results.domain.receivers import Commit, Verify
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Destination, TestedContext, TestResult, TestStep

UNCOMPRESSED = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian)
SYNTAXES = (
    *UNCOMPRESSED,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
)
"""Transfer syntaxes that are tried with images."""
IMAGES = (
    uid.CTImageStorage,
    uid.EnhancedCTImageStorage,
    uid.MRImageStorage,
    uid.EnhancedMRImageStorage,
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.BreastTomosynthesisImageStorage,
    uid.XRayAngiographicImageStorage,
    uid.XRayRadiofluoroscopicImageStorage,
    uid.UltrasoundImageStorage,
    uid.UltrasoundMultiFrameImageStorage,
    uid.NuclearMedicineImageStorage,
    uid.PositronEmissionTomographyImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    uid.SegmentationStorage,
    uid.ParametricMapStorage,
    uid.RTDoseStorage,
    uid.VLPhotographicImageStorage,
    uid.VLWholeSlideMicroscopyImageStorage,
    uid.OphthalmicPhotography8BitImageStorage,
)
OTHERS = (
    uid.BasicTextSRStorage,
    uid.EnhancedSRStorage,
    uid.ComprehensiveSRStorage,
    uid.Comprehensive3DSRStorage,
    uid.MammographyCADSRStorage,
    uid.ChestCADSRStorage,
    uid.KeyObjectSelectionDocumentStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.ColorSoftcopyPresentationStateStorage,
    uid.RTStructureSetStorage,
    uid.RTPlanStorage,
    uid.SurfaceSegmentationStorage,
    uid.SpatialRegistrationStorage,
    uid.EncapsulatedPDFStorage,
    uid.EncapsulatedSTLStorage,
    uid.RawDataStorage,
)
"""Storage SOP classes without pixel data: only what is not for images is tried with them."""


def echo_destination(
    destination: Destination,
    secrets: Secrets,
    calling_ae_title: str = "ClaraSCU",
    settings: AssociationSettings | None = None,
    clock: Clock | None = None,
) -> TestResult:
    """Test a destination of kind ``dicom``; what fails is told in the result, never raised.

    Args:
        destination: Which.
        secrets: Where what it names lies.
        calling_ae_title: As whom, unless the destination says.
        settings: How long to wait.
        clock: The time.
    """
    test = _Test(
        destination,
        secrets,
        calling_ae_title,
        settings or AssociationSettings(),
        clock or SystemClock(),
    )
    return test.run()


class _Test:
    """One test under way."""

    def __init__(
        self,
        destination: Destination,
        secrets: Secrets,
        calling_ae_title: str,
        settings: AssociationSettings,
        clock: Clock,
    ) -> None:
        self._destination = destination
        self._secrets = secrets
        self._calling = calling_ae_title
        self._settings = settings
        self._clock = clock
        self._steps: list[TestStep] = []
        self._contexts: list[TestedContext] = []

    def run(self) -> TestResult:
        """Go step by step up to the first that fails."""
        try:
            peer = Peer.of(self._destination, self._calling, self._secrets)
        except DestinationUnavailable as error:
            self._steps.append(
                TestStep(name="secrets", ok=False, milliseconds=0.0, message=str(error))
            )
            return self._result()
        association = self._associate(peer, [(VERIFICATION, str(uid.ImplicitVRLittleEndian))])
        steps: list[tuple[str, Callable[[], str]]] = [
            ("connect", lambda: self._connect(association, peer)),
            ("tls", lambda: f"{association.secure()}; its certificate is trusted"),
            ("association", lambda: self._negotiate(association, peer)),
            ("echo", lambda: self._echo(association)),
            ("contexts", lambda: self._negotiate_contexts(peer)),
            ("query", lambda: self._ask_back(peer)),
            ("commitment", lambda: self._negotiate_commitment(peer)),
        ]
        unwanted = {
            name
            for name, wanted in (
                ("tls", peer.tls is not None),
                ("query", self._destination.verify is not Verify.OFF),
                ("commitment", self._destination.commitment is not Commit.OFF),
            )
            if not wanted
        }
        with association:
            for name, step in steps:
                if name not in unwanted and not self._step(name, step):
                    break
        return self._result()

    def _result(self) -> TestResult:
        return TestResult(
            destination=self._destination.name,
            ok=all(step.ok for step in self._steps),
            steps=self._steps,
            contexts=self._contexts or None,
        )

    def _step(self, name: str, act: Callable[[], str]) -> bool:
        self._steps.append(
            taken(name, act, self._clock, (DestinationUnavailable, AssociationAborted))
        )
        return self._steps[-1].ok

    def _associate(self, peer: Peer, contexts: Sequence[Context]) -> Association:
        return Association(peer, contexts, self._settings, self._clock)

    def _connect(self, association: Association, peer: Peer) -> str:
        association.connect()
        return f"{peer.host} port {peer.port} takes connections"

    def _negotiate(self, association: Association, peer: Peer) -> str:
        association.negotiate()
        message = f"{peer.called} accepts an association from {peer.calling}"
        if peer.identity is None:
            return message
        if association.identified:
            return f"{message} and the user that it is asked for as"
        return f"{message}; of the user that it is asked for as it says nothing"

    def _echo(self, association: Association) -> str:
        for why in association.refused.values():
            raise DestinationUnavailable(f"it does not take C-ECHO: {why}")
        status = association.echo()
        if status != 0:
            raise DestinationUnavailable(f"it answers C-ECHO with status {status:04X}")
        association.release()
        return "it answers C-ECHO with success"

    def _negotiate_contexts(self, peer: Peer) -> str:
        """Propose every context that is tried, over as many associations as it takes, one after the other."""
        tried = list(_contexts())
        for start in range(0, len(tried), CONTEXT_LIMIT):
            contexts = tried[start : start + CONTEXT_LIMIT]
            with self._associate(peer, contexts).open() as association:
                association.release()
                for context in contexts:
                    self._contexts.append(_tested(context, association.refused.get(context)))
        taken = sum(context.accepted for context in self._contexts)
        return f"it takes {taken} of {len(tried)} pairs of storage SOP class and transfer syntax"

    def _ask_back(self, peer: Peer) -> str:
        """Query for an instance that nobody has, as a receiver is asked back for one that it stored."""
        wanted = {FIND: "queries (C-FIND)"}
        if self._destination.verify is Verify.FULL:
            wanted[GET] = "retrieval (C-GET)"
        query = image_query(uid.generate_uid(), uid.generate_uid(), uid.generate_uid())
        known = f"make {peer.calling} known to it as one that may ask back"
        association = associate(peer, self._settings, [build_context(model) for model in wanted])
        try:
            for context in association.rejected_contexts:
                what = wanted[str(context.abstract_syntax)]
                raise DestinationUnavailable(f"it does not offer {what}; {known}")
            for answer, _ in association.send_c_find(query, FIND):
                status = answer.get("Status")
                if status is None:
                    raise DestinationUnavailable(
                        f"it aborts at a query, or does not answer; {known}"
                    )
                if status not in {0x0000, 0xFF00, 0xFF01}:
                    raise DestinationUnavailable(
                        f"it answers a query with status {status:04X}; {known}"
                    )
        finally:
            if association.is_established:
                association.release()
        return f"it offers {' and '.join(wanted.values())}, and answers a query"

    def _negotiate_commitment(self, peer: Peer) -> str:
        roles = [build_role(PUSH_MODEL, scu_role=True, scp_role=False)]
        try:
            associate(peer, self._settings, [build_context(PUSH_MODEL)], roles).release()
        except NothingAccepted as error:
            if self._destination.commitment is Commit.REQUIRE:
                raise DestinationUnavailable("it does not offer storage commitment") from error
            return "it does not offer storage commitment; what it stores counts as delivered all the same"
        return "it offers storage commitment; that it knows where to report to is seen once it does"


def _contexts() -> Iterator[Context]:
    for sop_class, syntax in product(IMAGES, SYNTAXES):
        yield str(sop_class), str(syntax)
    for sop_class, syntax in product(OTHERS, (*UNCOMPRESSED, uid.DeflatedExplicitVRLittleEndian)):
        yield str(sop_class), str(syntax)


def _tested(context: Context, why: str | None) -> TestedContext:
    sop_class, syntax = context
    return TestedContext(
        sop_class_uid=sop_class,
        sop_class=UID(sop_class).name,
        transfer_syntax_uid=syntax,
        transfer_syntax=UID(syntax).name,
        accepted=why is None,
        reason=why,
    )
